from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.samplers import class_balanced
from lt_pipeline.learning.engine import trainer
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.optim import parameters_of, set_trainable
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig
from toys import toy_card, toy_images

CPU = torch.device("cpu")
PLAIN = AugmentConfig(crop_padding=0, flip=0.0)


def config(**values):
    defaults = {"epochs": 3, "batch_size": 25, "learning_rate": 0.05, "warmup_epochs": 1}
    defaults["checkpoint_every"] = 0  # a state after each
    return TrainingConfig(**{**defaults, "schedule": "cosine", "augment": PLAIN, **values})


def method(seed=0, kind=Method):
    torch.manual_seed(seed)
    return kind(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())


def run(trained, training, *, seed=0, stage=None, **extra):
    stage = stage or Stage("train", epochs=training.epochs)
    return fit(trained, stage, toy_images(), training, seed=seed, device=CPU, **extra)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def test_the_weights_are_those_of_a_loop_written_out():
    """One epoch of SGD with momentum, decay and warm-up, step by step, in another way."""
    training = config(epochs=1, warmup_epochs=1, gradient_clip=0.5)
    trained, reference = method(), method()
    run(trained, training, seed=7)
    data = toy_images()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(7))
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    reference.train()
    for step in range(3):
        index = order[25 * step : 25 * (step + 1)]
        loss = F.cross_entropy(reference.net(data.images[index]), data.labels[index])
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
        with torch.no_grad():
            for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
                clipped = g * min(1.0, 0.5 / (norm + 1e-6)) + 2e-4 * p
                velocity[name] = 0.9 * velocity[name] + clipped
                p -= 0.05 * (step + 1) / 3 * velocity[name]
    for name, p in trained.named_parameters():
        torch.testing.assert_close(p, reference.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_the_loss_falls_and_the_history_has_every_epoch():
    training = config(epochs=8, monitor_every=2)
    history = run(method(), training, monitors={"validation": toy_images(seed=5)})
    losses = [p["value"] for p in history["train/cross_entropy"]]
    assert losses[-1] < 0.5 * losses[0]
    assert [p["step"] for p in history["train/cross_entropy"]] == list(range(1, 9))
    assert [p["step"] for p in history["validation/accuracy"]] == [2, 4, 6, 8]
    assert history["validation/accuracy"][-1]["value"] > 0.5
    assert history["train/learning_rate"][-1]["value"] == pytest.approx(0, abs=1e-9)


def test_equal_seeds_give_equal_weights_and_others_do_not():
    training = config(augment=AugmentConfig(crop_padding=1, flip=0.5))
    results = []
    for seed in (0, 0, 1):
        trained = method()
        run(trained, training, seed=seed)
        results.append(trained.state_dict())
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_broke_off_ends_with_the_same_weights(tmp_path, stop):
    training = config(epochs=4, augment=AugmentConfig(crop_padding=1, flip=0.5))
    whole = method()
    history = run(whole, training)

    def break_off(stage, epoch, values):
        if epoch == stop:
            raise Interrupted

    resume = ResumeFile(tmp_path / "train.pt", "run")
    with pytest.raises(Interrupted):
        run(method(), training, resume=resume, report=break_off)
    # A state holds everything, so that other initial weights do not matter.
    resumed = method(seed=99)
    seen = []
    continued = run(
        resumed, training, resume=resume, report=lambda stage, epoch, values: seen.append(epoch)
    )
    assert seen == [1, 2, 3, 4]
    assert same(resumed.state_dict(), whole.state_dict())
    for name in ("train/cross_entropy", "train/learning_rate"):
        assert continued[name] == history[name]


class Clock:
    """A clock by which every look at it is a second later."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize(("seconds", "kept"), [(0, [1, 2, 3, 4]), (1e6, [4]), (7, [2, 4])])
def test_states_are_kept_by_time_and_at_the_end(tmp_path, monkeypatch, seconds, kept):
    # an epoch looks at the clock twice, and its end once
    monkeypatch.setattr(trainer, "time", Clock())
    resume, states = ResumeFile(tmp_path / "train.pt", "run"), []

    class Kept(ResumeFile):
        def save(self, state):
            states.append(state["epoch"])

    run(
        method(),
        config(epochs=4, checkpoint_every=seconds, monitor_every=0),
        resume=Kept(resume.path, "run"),
    )
    assert states == kept


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"monitor_every": 3}, [3, 6, 7]),
        ({"monitor_every": 1, "monitor_seconds": 1e6}, [7]),
        ({"monitor_every": 2, "monitor_seconds": 1e6}, [7]),
        ({"monitor_every": 0, "monitor_seconds": 0}, []),
    ],
)
def test_the_last_epoch_is_looked_at_whatever_lies_between(values, steps):
    history = run(method(), config(epochs=7, **values), monitors={"test": toy_images()})
    assert [p["step"] for p in history.get("test/accuracy", [])] == steps


@pytest.mark.gpu
def test_what_is_looked_at_comes_to_the_device_once():
    moved = []

    class Counted(ImageSet):
        def to(self, device):
            moved.append(device.type)
            return ImageSet.to(self, device)

    trained, device = method(), torch.device("cuda")
    stage, data = Stage("train", epochs=3), toy_images()
    looked_at = Counted(data.images, data.labels, data.class_names)
    fit(trained, stage, data, config(), seed=0, device=device, monitors={"test": looked_at})
    assert moved == ["cuda"]


def test_only_what_the_stage_trains_moves_its_statistics_neither():
    trained = method()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    run(trained, config(), stage=Stage("train", epochs=2, trainable=("net.head",)))
    changed = {
        name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"net.head.weight", "net.head.bias"}


def test_parameters_named_by_the_method_do_not_decay():
    class Undecayed(Method):
        def no_weight_decay(self):
            return [self.net.head.weight]

        def loss(self, batch, progress):
            return {"nothing": 0.0 * sum(p.sum() for p in self.parameters())}

    trained = method(kind=Undecayed)
    before = {name: p.clone() for name, p in trained.named_parameters()}
    run(trained, config(weight_decay=0.1))
    assert torch.equal(trained.net.head.weight, before["net.head.weight"])
    convolution = "net.backbone.stem.weight"
    moved = [name for name, p in trained.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 5, convolution
    assert all(trained.get_parameter(n).norm() < before[n].norm() for n in moved)


def test_progress_ends_at_one():
    seen = []

    class Watching(Method):
        def loss(self, batch, progress):
            seen.append(progress)
            return super().loss(batch, progress)

    run(method(kind=Watching), config(epochs=2))
    assert seen == pytest.approx([k / 6 for k in range(1, 7)])


def test_a_loss_that_is_no_number_stops_the_run_with_its_name():
    class Broken(Method):
        def loss(self, batch, progress):
            return {"mine": super().loss(batch, progress)["cross_entropy"] * float("nan")}

    with pytest.raises(
        ValueError, match=r"'mine' is nan in epoch 1 of stage 'train'.*learning_rate"
    ):
        run(method(kind=Broken), config())


class LastStep(Method):
    """Its loss is finite all the way; the gradient of its last step is nan."""

    def loss(self, batch, progress):
        terms = super().loss(batch, progress)
        if progress == 1:
            # the root's slope at 0 is infinite, and 0 times that is nan
            terms["root"] = (0 * self.net.head.weight).sum().sqrt()
        return terms


def test_what_the_last_step_makes_of_the_weights_is_seen(tmp_path):
    wanted = "weights are nan or infinite in epoch 2 of stage 'train': lower training.learning_rate"
    resume, reported = ResumeFile(tmp_path / "train.pt", "run"), []
    with pytest.raises(ValueError, match=wanted):
        run(
            method(kind=LastStep),
            config(epochs=2),
            resume=resume,
            report=lambda stage, epoch, values: reported.append(values),
        )
    assert len(reported) == 1
    assert all(math.isfinite(value) for value in reported[0].values())
    kept = resume.load()
    assert kept["epoch"] == 1, "a run goes on from the last state that was whole"
    assert all(value.isfinite().all() for value in kept["weights"][0].values())


def test_statistics_that_are_no_numbers_are_seen_as_weights_are():
    class Overflowing(Method):
        def start_epoch(self, epoch, epochs):
            # batches normalise by their own in training: no loss ever sees it
            next(m for m in self.modules() if hasattr(m, "running_var")).running_var.fill_(math.inf)

    with pytest.raises(ValueError, match="weights are nan or infinite in epoch 1"):
        run(method(kind=Overflowing), config(epochs=2))


def test_weights_are_looked_at_without_another_transfer(monkeypatch):
    training, moved = config(epochs=2), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: moved.append(tensor.shape) or tolist(tensor)
    )
    run(method(), training)
    # one loss term, and whether all is finite
    assert moved == [(2,), (2,)]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_scores_that_are_no_numbers_stop_the_run_where_they_are_made(name):
    class Overflowing(Method):
        def score(self, images):
            return 1e38 * (1 + super().score(images).square()) * 1e38

    with pytest.raises(ValueError, match="those of 75 of 75 images are nan or infinite"):
        run(method(kind=Overflowing), config(), monitors={name: toy_images(seed=5)})


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(
        ValueError, match=r"training.batch_size must be <= .* is 100 with 75 images"
    ):
        run(method(), config(batch_size=100))


@pytest.mark.gpu
def test_the_gpu_sees_the_same_images_in_the_same_order():
    orders = []

    class Watching(Method):
        def loss(self, batch, progress):
            orders[-1].append(batch.positions.cpu())
            return super().loss(batch, progress)

    for device in ("cpu", "cuda"):
        orders.append([])
        training = config()
        fit(
            method(kind=Watching),
            Stage("train", epochs=3),
            toy_images(),
            training,
            seed=3,
            device=torch.device(device),
        )
    assert all(torch.equal(a, b) for a, b in zip(*orders, strict=True))


class Watching(Method):
    """Keeps what the loop tells it and gives it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.told, self.seen = [], []

    @property
    def views(self):
        return 2

    def loss(self, batch, progress):
        self.seen.append(batch)
        return super().loss(batch._replace(views=()), progress)

    def end_epoch(self, epochs, validation, device):
        self.told.append(validation)


def test_after_every_epoch_the_method_is_told_of_the_hold_out():
    watching, held_out = method(kind=Watching), toy_images(seed=5)
    run(watching, config(), monitors={"validation": held_out, "test": toy_images(seed=6)})
    assert all(told is held_out for told in watching.told)
    assert len(watching.told) == 3
    alone = method(kind=Watching)
    run(alone, config())
    assert alone.told == [None] * 3


def test_batches_bring_the_views_that_are_asked_for():
    watching = method(kind=Watching)
    data = toy_images()
    run(watching, config(epochs=1))
    for batch in watching.seen:
        assert len(batch.views) == 2
        assert all(view.shape == batch.images.shape for view in batch.views)
        assert all(view.dtype == torch.uint8 for view in batch.views)
        assert not torch.equal(batch.views[0], batch.views[1])
        assert torch.equal(batch.images, data.images[batch.positions])
    still = {"crop_scale": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
    same_views = method(kind=Watching)
    run(same_views, config(epochs=1, views=still))
    for batch in same_views.seen:
        assert all(torch.equal(view, batch.images) for view in batch.views)


def test_the_sampler_is_the_stages_own_or_the_configured_one():
    asked = []

    def first_ones(labels, generator, done):
        asked.append(done)
        return torch.zeros(50, dtype=torch.int64)

    own = method(kind=Watching)
    training = config(sampler={"name": "reverse"})
    run(own, training, stage=Stage("train", epochs=4, sampler=first_ones))
    assert asked == [0.0, 0.25, 0.5, 0.75]
    assert all(not batch.positions.any() for batch in own.seen)
    configured = method(kind=Watching)
    run(configured, training)
    labels = torch.cat([batch.labels for batch in configured.seen])
    # class 3 has the fewest images and is drawn most
    counts = torch.bincount(labels, minlength=4)
    assert counts.argmax() == 3
    assert counts.argmin() == 0


def test_deferred_resampling_changes_the_sampler_within_the_run():
    watching = method(kind=Watching)
    run(watching, config(epochs=4, sampler={"name": "class_balanced", "defer": 0.5}))
    half = len(watching.seen) // 2
    early = torch.cat([batch.positions for batch in watching.seen[:half]]).view(2, -1)
    late = torch.cat([batch.positions for batch in watching.seen[half:]]).view(2, -1)
    assert all(len(epoch.unique()) == len(epoch) for epoch in early)
    assert all(len(epoch.unique()) < len(epoch) for epoch in late)


def difficulty_method(difficulty):
    torch.manual_seed(0)
    criterion = {"name": "difficulty_balanced", "difficulty": difficulty}
    options = MethodOptions.model_validate({"criterion": criterion})
    return Method(options, ModelConfig(backbone="resnet8"), toy_card())


@pytest.mark.parametrize("difficulty", ["training", "validation"])
def test_difficulty_weights_follow_the_training_and_survive_a_resume(tmp_path, difficulty):
    held_out = {"validation": toy_images((5, 5, 5, 5), seed=5, noise=300.0)}
    whole, broken = difficulty_method(difficulty), difficulty_method(difficulty)
    stage, training = Stage("train", epochs=4), config(epochs=4)
    run(whole, training, stage=stage, monitors=held_out)
    assert not torch.equal(whole.criterion.class_weight, torch.ones(4))
    file = ResumeFile(tmp_path / "state.pt", "mark")

    def stop(name, epoch, values):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(broken, training, stage=stage, monitors=held_out, resume=file, report=stop)
    resumed = difficulty_method(difficulty)
    run(resumed, training, stage=stage, monitors=held_out, resume=file)
    assert same(whole.state_dict(), resumed.state_dict())


def test_small_batches_of_solved_classes_do_not_end_a_difficulty_balanced_training():
    trained = difficulty_method("training")
    training = config(epochs=12, batch_size=8, learning_rate=0.05)
    run(trained, training, stage=Stage("train", epochs=12))
    assert trained.criterion.accuracy.max() == 1
    assert all(p.isfinite().all() for p in trained.parameters())


def test_a_stage_may_train_several_submodules():
    trained = difficulty_method("training")
    before = {name: p.clone() for name, p in trained.named_parameters()}
    stage = Stage("train", epochs=2, trainable=("net.head", "criterion"))
    run(trained, config(epochs=2), stage=stage)
    changed = {name for name, p in trained.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"net.head.weight", "net.head.bias"}
    assert trained.criterion.known.any(), "the criterion was in training, too"


def test_the_hold_out_is_followed_by_accuracy_and_by_class():
    held_out = toy_images((12, 2, 2, 2), seed=5, noise=300.0)
    trained = method()
    history = run(trained, config(epochs=2), monitors={"validation": held_out})
    with torch.no_grad():
        right = (trained.eval().score(held_out.images).argmax(1) == held_out.labels).double()
    recalls = [right[held_out.labels == c].mean() for c in range(4)]
    last = {name: series[-1]["value"] for name, series in history.items()}
    assert last["validation/accuracy"] == pytest.approx(right.mean().item())
    assert last["validation/mean_recall"] == pytest.approx(torch.stack(recalls).mean().item())


def test_difficulty_of_a_hold_out_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="set data.validation > 0"):
        run(difficulty_method("validation"), config())


class Witness(Method):
    """Keeps every batch it was trained on."""

    def loss(self, batch, progress):
        self.seen = [*getattr(self, "seen", []), batch]
        return super().loss(batch, progress)


def test_a_stage_with_a_pair_brings_a_second_draw_of_the_same_size():
    torch.manual_seed(0)
    witness = Witness(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
    stage = Stage("train", epochs=2, pair=class_balanced)
    run(witness, config(epochs=2), stage=stage)
    data = toy_images()
    assert len(witness.seen) == 6
    for batch in witness.seen:
        for part in (batch, batch.pair):
            assert torch.equal(part.labels, data.labels[part.positions])
            assert torch.equal(part.images, data.images[part.positions])
        assert len(batch.pair.labels) == 25
        assert batch.outliers is None
    own = torch.cat([batch.positions for batch in witness.seen[:3]])
    assert own.unique().numel() == 75, "the pair takes nothing from the epoch"
    drawn = torch.bincount(torch.cat([batch.pair.labels for batch in witness.seen]))
    assert drawn.max() < 2.2 * drawn.min(), "40 to 5 as they come"


def test_outliers_come_beside_the_images_and_are_not_counted_as_them():
    torch.manual_seed(0)
    witness = Witness(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
    auxiliary = toy_images((9,), seed=5)
    stage = Stage("train", epochs=1, outliers=0.4)
    # Cutout would black out what outliers are
    cutout = AugmentConfig(crop_padding=0, flip=0.0, cutout=8)
    run(witness, config(epochs=1, augment=cutout), stage=stage, auxiliary=auxiliary)
    assert (witness.seen[0].images == 0).double().mean() > 0.2
    known = {tuple(image.flatten().tolist()) for image in auxiliary.images}
    shown = set()
    for batch in witness.seen:
        assert batch.outliers.shape == (10, 1, 8, 8)
        shown |= {tuple(image.flatten().tolist()) for image in batch.outliers}
    assert shown <= known
    assert len(shown) > 5


@pytest.mark.parametrize("auxiliary", [None, toy_images()[torch.arange(0)]])
def test_a_stage_that_asks_for_outliers_is_refused_without_any(auxiliary):
    with pytest.raises(ValueError, match=r"stage 'train' trains on images of no class.*data.auxil"):
        run(method(), config(), stage=Stage("train", epochs=3, outliers=1.0), auxiliary=auxiliary)


# What a stage has of its own


def states(trained, stage, training=None, **extra):
    """Return the state before and after ``stage``."""
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    run(trained, training or config(), stage=stage, **extra)
    return before, trained.state_dict()


def moved(before, after):
    return {name for name in after if not torch.equal(before[name], after[name])}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
HEAD = {"net.head.weight", "net.head.bias"}


def test_what_a_stage_says_of_training_goes_before_what_all_share():
    own = {
        "learning_rate": 0.02, "schedule": "constant", "warmup_epochs": 0, "batch_size": 15,
        "weight_decay": 0.3, "momentum": 0.0, "augment": {"flip": 1.0, "crop_padding": 0},
    }  # fmt: skip
    shared = config(epochs=9, batch_size=25, warmup_epochs=1)
    witness, told = method(kind=Witness), method(kind=Witness)
    history = run(witness, shared, stage=Stage("train", epochs=2, training=own))
    assert [p["value"] for p in history["train/learning_rate"]] == [0.02, 0.02]
    assert [len(batch.labels) for batch in witness.seen] == [15] * 10
    data = toy_images()
    assert all(torch.equal(b.images, data.images[b.positions].flip(3)) for b in witness.seen)
    run(told, TrainingConfig(**{**shared.model_dump(), **own}), stage=Stage("train", epochs=2))
    assert same(witness.state_dict(), told.state_dict())
    # the next stage has what all share again
    after = method(kind=Witness)
    run(after, shared, stage=Stage("train", epochs=1))
    assert len(after.seen[0].labels) == 25


def test_a_wrong_value_of_a_stage_is_refused_by_name():
    with pytest.raises(ValueError, match="lerning_rate"):
        run(method(), config(), stage=Stage("train", epochs=1, training={"lerning_rate": 1}))


def test_rates_are_factors_of_submodules_and_single_parameters():
    training = config(epochs=1, batch_size=75, warmup_epochs=0, schedule="constant", momentum=0)
    plain, slow = method(), method()
    rates = {"net.head": 0.5, "net.head.bias": 0.2, "net.backbone.stem": 0.0}
    before, one = states(plain, Stage("train", epochs=1), training)
    _, other = states(slow, Stage("train", epochs=1, rates=rates), training)
    for name, _ in plain.named_parameters():
        step, slower = one[name] - before[name], other[name] - before[name]
        factor = {"net.head.weight": 0.5, "net.head.bias": 0.1, "net.backbone.stem.weight": 0.0}
        torch.testing.assert_close(slower, factor.get(name, 1) * step, rtol=1e-3, atol=1e-7)
        assert step.abs().max() > 1e-6, name
    history = run(method(), training, stage=Stage("train", epochs=1, rates=rates))
    assert history["train/learning_rate"][0]["value"] == 0.05, "of what has no factor"


def test_all_rates_follow_one_schedule():
    seen = []

    class Rates(Method):
        def loss(self, batch, progress):
            seen.append(self.net.head.bias.detach().clone())
            return {"sum": self.net.head.bias.sum() + self.net.head.weight.sum()}

    training = config(epochs=2, momentum=0, weight_decay=0, warmup_epochs=0)
    run(method(kind=Rates), training, stage=Stage("train", epochs=2, rates={"net.head.bias": 0.1}))
    steps = [float((a - b)[0]) for a, b in pairwise(seen)]
    wanted = [0.005 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(5)]
    assert steps == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("size", "sizes"), [(30, [30, 30, 15]), (25, [25] * 3), (200, [75])])
def test_with_remainder_every_image_is_seen_once_an_epoch(size, sizes):
    witness = method(kind=Witness)
    progress = []
    plain = witness.loss
    witness.loss = lambda batch, done: progress.append(done) or plain(batch, done)
    training = config(batch_size=size, epochs=2, warmup_epochs=0)
    history = run(witness, training, stage=Stage("train", epochs=2, remainder=True))
    assert [len(batch.labels) for batch in witness.seen] == sizes * 2
    for part in (witness.seen[: len(sizes)], witness.seen[len(sizes) :]):
        assert torch.cat([b.positions for b in part]).sort().values.tolist() == list(range(75))
    steps = 2 * len(sizes)
    assert progress == pytest.approx([(k + 1) / steps for k in range(steps)])
    assert history["train/learning_rate"][-1]["value"] == pytest.approx(0, abs=1e-9)
    series = [history[f"train/{name}"] for name in ("seconds", "images_per_second")]
    for seconds, speed in zip(*series, strict=True):
        assert seconds["value"] * speed["value"] == pytest.approx(75)


def test_without_remainder_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"is 200 with 75 images"):
        run(method(), config(batch_size=200))
    with pytest.raises(ValueError, match=r"is 200 with 75 images"):
        run(method(), config(), stage=Stage("train", epochs=1, training={"batch_size": 200}))


def test_no_image_at_all_is_refused_with_remainder_too():
    with pytest.raises(ValueError, match=r"with 0 images"):
        fit(method(), Stage("train", epochs=1, remainder=True), toy_images()[torch.arange(0)],
            config(), seed=0, device=CPU)  # fmt: skip


def test_with_remainder_pairs_and_outliers_come_with_every_batch():
    witness = method(kind=Witness)
    stage = Stage("train", epochs=2, pair=class_balanced, outliers=0.5, remainder=True)
    auxiliary = toy_images((9,), seed=5)
    run(witness, config(epochs=2, batch_size=30), stage=stage, auxiliary=auxiliary)
    assert [len(batch.pair.labels) for batch in witness.seen] == [30, 30, 15] * 2
    assert [len(batch.outliers) for batch in witness.seen] == [15] * 6


def test_statistics_of_frozen_parts_follow_the_batches_where_they_adapt():
    stage = Stage("train", epochs=2, trainable=("net.head",), adapts=("net.backbone",))
    before, after = states(method(), stage)
    statistics = {name for name in before if name.split(".")[-1] in STATISTICS}
    assert len(statistics) > 5
    assert moved(before, after) == HEAD | statistics
    # of a single part, its own only
    stage = Stage("train", epochs=2, trainable=("net.head",), adapts=("net.backbone.stage2",))
    before, after = states(method(), stage)
    assert moved(before, after) == HEAD | {n for n in statistics if ".stage2." in n}


def test_statistics_that_adapt_are_those_of_the_same_batches_seen_in_training_mode():
    adapting, reference = method(kind=Witness), method()
    stage = Stage("train", epochs=1, trainable=("net.head",), adapts=("net.backbone",))
    run(adapting, config(epochs=1, channels_last=False), stage=stage)
    reference.train()
    with torch.no_grad():
        for batch in adapting.seen:
            reference.net.features(batch.images)
    for name, value in reference.state_dict().items():
        if "backbone" in name:
            assert torch.equal(adapting.state_dict()[name], value), name


def test_without_adapting_nothing_of_the_frozen_part_moves():
    before, after = states(method(), Stage("train", epochs=2, trainable=("net.head",)))
    assert moved(before, after) == HEAD


def test_only_batchnorm_is_in_training_mode_where_it_adapts():
    class Dropping(Method):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.net.backbone.drop = torch.nn.Dropout()

    trained = method(kind=Dropping)
    stage = Stage("train", epochs=1, trainable=("net.head",), adapts=("net.backbone",))
    set_trainable(trained, stage)
    norms = [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.training for norm in norms)
    assert not trained.net.backbone.drop.training
    assert not trained.net.backbone.training
    assert trained.net.head.training
    assert [n for n, p in trained.named_parameters() if p.requires_grad] == [
        "net.head.weight", "net.head.bias"
    ]  # fmt: skip
    # a stage behind it finds nothing left of that
    set_trainable(trained, Stage("train", epochs=1, trainable=("net.head",)))
    assert not any(norm.training for norm in norms)
    set_trainable(trained, Stage("train", epochs=1))
    assert all(module.training for module in trained.modules())
    assert all(p.requires_grad for p in trained.parameters())


def test_a_stage_may_train_a_single_parameter():
    before, after = states(method(), Stage("train", epochs=2, trainable=("net.head.bias",)))
    assert moved(before, after) == {"net.head.bias"}


def test_a_parameter_and_a_submodule_beside_it():
    stage = Stage("train", epochs=2, trainable=("net.head.bias", "net.backbone.stage1"))
    before, after = states(method(), stage)
    wanted = {n for n in before if n.startswith("net.backbone.stage1.")} | {"net.head.bias"}
    assert moved(before, after) == wanted


def test_a_scope_is_a_parameter_or_a_submodule_and_empty_is_all():
    whole = method()
    assert [*parameters_of(whole, "")] == [*whole.parameters()]
    assert [*parameters_of(whole, "net.head")] == [*whole.net.head.parameters()]
    (weight,) = parameters_of(whole, "net.head.weight")
    assert weight is whole.net.head.weight
    with pytest.raises(AttributeError, match="hea"):
        [*parameters_of(whole, "net.hea")]


class Mixing(Method):
    """Keeps its batches and learns from mixtures."""

    def loss(self, batch, progress):
        self.seen = [*getattr(self, "seen", []), batch]
        images, first, second, lam = batch.mixed
        logits = self.net(images)
        one, other = (F.cross_entropy(logits, y, reduction="none") for y in (first, second))
        return {"mixed": (lam * one + (1 - lam) * other).mean()}


MIXED = Stage("train", epochs=3, mix=MixConfig(cutmix=False))


def test_a_stage_that_mixes_brings_every_batch_mixed_with_itself():
    mixing = method(kind=Mixing)
    run(mixing, config(), stage=MIXED)
    data = toy_images()
    assert len(mixing.seen) == 9
    shares, orders = set(), set()
    for batch in mixing.seen:
        assert torch.equal(batch.images, data.images[batch.positions])
        assert torch.equal(batch.mixed.first, batch.labels)
        lam = batch.mixed.lam[0].item()
        left = (batch.mixed.images.double() - lam * batch.images) / (1 - lam)
        apart = (left[:, None] - batch.images.double()).abs().amax((2, 3, 4))
        other = apart.argmin(1)
        assert sorted(other.tolist()) == list(range(25)), "each is the second one once"
        assert torch.equal(batch.mixed.second, batch.labels[other])
        shares.add(round(lam, 6))
        orders.add(tuple(other.tolist()))
    assert len(shares) == len(orders) == 9, "each batch is mixed in its own way"
    epoch = torch.cat([batch.positions for batch in mixing.seen[:3]])
    assert epoch.unique().numel() == 75
    without = method(kind=Witness)
    run(without, config())
    assert all(batch.mixed is None for batch in without.seen)


def test_mixtures_are_those_of_the_seed():
    ends = []
    for seed in (0, 0, 1):
        mixing = method(kind=Mixing)
        run(mixing, config(), stage=MIXED, seed=seed)
        ends.append(mixing)
    assert same(ends[0].state_dict(), ends[1].state_dict())
    for one, other in zip(ends[0].seen, ends[1].seen, strict=True):
        assert torch.equal(one.mixed.images, other.mixed.images)
    assert not torch.equal(ends[0].seen[0].mixed.lam, ends[2].seen[0].mixed.lam)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_stage_with_all_of_its_own_resumes_with_the_same_weights(tmp_path, stop):
    stage = Stage(
        "train", epochs=3, trainable=("net.head", "net.backbone.stage3"),
        adapts=("net.backbone.stage1",), rates={"net.head.bias": 0.3}, mix=MixConfig(),
        remainder=True, training={"batch_size": 30, "learning_rate": 0.1},
    )  # fmt: skip
    training = config(augment=AugmentConfig(crop_padding=1, flip=0.5))
    whole, resumed = method(kind=Mixing), method(seed=99, kind=Mixing)
    history = run(whole, training, stage=stage)

    def break_off(name, epoch, values):
        if epoch == stop:
            raise Interrupted

    file = ResumeFile(tmp_path / "train.pt", "run")
    with pytest.raises(Interrupted):
        run(method(kind=Mixing), training, stage=stage, resume=file, report=break_off)
    continued = run(resumed, training, stage=stage, resume=file)
    assert same(resumed.state_dict(), whole.state_dict())
    assert continued["train/mixed"] == history["train/mixed"]
    for one, other in zip(resumed.seen, whole.seen[3 * stop :], strict=True):
        assert torch.equal(one.mixed.images, other.mixed.images)
