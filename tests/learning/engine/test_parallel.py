from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.samplers import class_balanced
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.parallel import fit_together
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig, two_hot_loss
from toys import toy_card, toy_images

CPU = torch.device("cpu")
COUNTS = (10, 8, 6, 5)
SEEDS = [3, 4, 5]
BOTH_WAYS = pytest.mark.parametrize("vmap", [True, False])
WHAT = pytest.mark.parametrize("trains", ["", "net.head", "net.backbone"])
# a run's seconds are its own
TIMES = {"train/seconds", "train/images_per_second"}


class Mixing(Method):
    def loss(self, batch, progress):
        images, first, second, share = batch.mixed
        logits = self.net(images)
        losses = [F.cross_entropy(logits, label, reduction="none") for label in (first, second)]
        return {"mixed": two_hot_loss(*losses, share).mean(), "late": progress * logits.mean()}


class Plain(Method):
    def loss(self, batch, progress):
        return {"plain": F.cross_entropy(self.net(batch.images), batch.labels)}


def method(kind=Mixing, seed=0, **model):
    torch.manual_seed(seed)
    return kind(MethodOptions(), ModelConfig(backbone="resnet8", **model), toy_card()).double()


def config(**values):
    return TrainingConfig(augment=AugmentConfig(crop_padding=1, flip=0.5), **values)


def stages(count=3, epochs=3, trainable=("",), **training):
    given = {
        "batch_size": 12,
        "learning_rate": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "weight_decay": 1e-2,
        **training,
    }
    mix = MixConfig(cutmix=False)
    return [
        Stage(
            f"branch_{k}",
            epochs=epochs,
            trainable=trainable,
            mix=mix,
            remainder=True,
            training=given,
        )
        for k in range(count)
    ]


def subsets(count=3):
    return [toy_images(COUNTS, seed=k) for k in range(count)]


def together(trained, given, *, training=None, **extra):
    extra = {"seeds": SEEDS[: len(given)], **extra}
    sets = extra.pop("sets", subsets(len(given)))
    return fit_together(trained, given, sets, training or config(), device=CPU, **extra)


def one_by_one(start, given, training=None, monitors=None):
    found = []
    for stage, data, seed in zip(given, subsets(len(given)), SEEDS, strict=False):
        trained = copy.deepcopy(start)
        history = fit(
            trained, stage, data, training or config(), seed=seed, device=CPU, monitors=monitors
        )
        found.append((trained.state_dict(), history))
    return found


def close(found, expected, **tolerance):
    assert len(found) == len(expected)
    for (state, history), (true_state, true_history) in zip(found, expected, strict=True):
        assert list(state) == list(true_state)
        for name, value in true_state.items():
            assert state[name].dtype == value.dtype, name
            torch.testing.assert_close(state[name], value, **tolerance, msg=lambda m, n=name: n + m)
        assert list(history) == list(true_history)
        for name in history.keys() - TIMES:
            values, truth = ([p["value"] for p in h[name]] for h in (history, true_history))
            assert values == pytest.approx(truth, rel=1e-5, abs=1e-7), name
            assert [p["step"] for p in history[name]] == [p["step"] for p in true_history[name]]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@BOTH_WAYS
@WHAT
def test_the_networks_are_those_of_one_training_after_the_other(vmap, trains):
    given, start = stages(trainable=(trains,)), method()
    held_out = {"validation": toy_images(seed=9)}
    found = together(start, given, monitors=held_out, vmap=vmap)
    close(found, one_by_one(start, given, monitors=held_out), rtol=1e-7, atol=1e-9)
    before, (state, _) = start.state_dict(), found[0]
    moved = {name for name in before if not torch.equal(before[name], state[name])}
    if trains:
        assert moved
        assert all(name.startswith(trains) for name in moved)
    assert not same(found[0][0], found[1][0])
    statistics = {name for name in moved if "running" in name or "tracked" in name}
    assert bool(statistics) == (trains != "net.head")


@BOTH_WAYS
def test_gradients_are_clipped_by_network(vmap):
    # 0.6 is less than some networks' norms and more than others'
    given, start = stages(gradient_clip=0.6), method()
    found = together(start, given, vmap=vmap)
    close(found, one_by_one(start, given), rtol=1e-7, atol=1e-9)
    free = together(start, stages(), vmap=vmap)
    assert not torch.allclose(
        found[0][0]["net.head.weight"], free[0][0]["net.head.weight"], rtol=1e-3
    )


@BOTH_WAYS
def test_in_single_precision_they_agree_to_its_tolerance(vmap):
    given, start = stages(), method().float()
    close(together(start, given, vmap=vmap), one_by_one(start, given), rtol=1e-3, atol=1e-4)


def test_bfloat16_is_as_far_from_float32_as_it_is_alone():
    start = method().float()
    exact = one_by_one(start, stages())
    given = stages(precision="bfloat16")
    alone, found = one_by_one(start, given), together(start, given, vmap=True)
    name = "net.backbone.stem.weight"
    for (true, _), (expected, _), (state, _) in zip(exact, alone, found, strict=True):
        assert state[name].dtype == torch.float32
        error = (expected[name] - true[name]).norm()
        assert 0 < (state[name] - true[name]).norm() < 2 * error


@BOTH_WAYS
def test_one_network_is_fit(vmap):
    given, start = stages(1), method()
    close(together(start, given, vmap=vmap), one_by_one(start, given), rtol=1e-7, atol=1e-9)


class Undecayed(Plain):
    def no_weight_decay(self):
        return [self.net.head.weight]


@BOTH_WAYS
def test_batches_without_mixtures_and_rates_by_submodule(vmap):
    given = [
        replace(stage, mix=None, remainder=False, rates={"net.head": 0.1}) for stage in stages()
    ]
    start = method(Undecayed)
    close(together(start, given, vmap=vmap), one_by_one(start, given), rtol=1e-7, atol=1e-9)


@BOTH_WAYS
def test_the_method_has_its_start_again_and_no_network_shares_memory(vmap):
    start = method()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    pointers = {name: value.data_ptr() for name, value in start.state_dict().items()}
    found = together(start, stages(), vmap=vmap)
    assert same(start.state_dict(), before)
    assert pointers == {name: value.data_ptr() for name, value in start.state_dict().items()}
    tensors = [value for state, _ in found for value in state.values()]
    assert len({value.data_ptr() for value in tensors}) == len(tensors)


class Watching(Mixing):
    """Counts, in a buffer, what it is told between epochs."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("told", torch.zeros(2))

    def start_epoch(self, epoch, epochs):
        super().start_epoch(epoch, epochs)
        self.told[0] += epoch + 1

    def end_epoch(self, epochs, validation, device):
        self.told[1] += self.net.head.weight.sum().item()

    def epoch_metrics(self):
        return {"told": float(self.told.sum())}


@BOTH_WAYS
def test_what_a_network_learns_between_epochs_is_its_own(vmap):
    given, start = stages(), method(Watching)
    found = together(start, given, vmap=vmap)
    close(found, one_by_one(start, given), rtol=1e-7, atol=1e-9)
    assert all(state["told"][0] == 6 for state, _ in found)
    assert len({float(state["told"][1]) for state, _ in found}) == 3


class Interrupted(Exception):
    pass


@BOTH_WAYS
def test_a_run_that_broke_off_ends_with_the_same_bits(tmp_path, vmap):
    given = stages(epochs=4)
    training = config(checkpoint_every=0)
    whole, reported = together(method(), given, training=training, vmap=vmap), []

    def break_off(stage, epoch, values):
        if (stage, epoch) == ("branch_1", 3):
            raise Interrupted

    resume = ResumeFile(tmp_path / "branches.pt", "run")
    with pytest.raises(Interrupted):
        together(method(), given, training=training, vmap=vmap, resume=resume, report=break_off)
    # a state holds everything, so that other initial weights do not matter
    resumed = together(
        method(seed=99),
        given,
        training=training,
        vmap=vmap,
        resume=resume,
        report=lambda stage, epoch, values: reported.append((epoch, stage, values)),
    )
    assert [r[:2] for r in reported] == [
        (epoch, stage.name) for epoch in range(1, 5) for stage in given
    ]
    for k, ((state, history), (true_state, true_history)) in enumerate(
        zip(resumed, whole, strict=True)
    ):
        assert same(state, true_state)
        assert all(history[name] == true_history[name] for name in history.keys() - TIMES)
        for epoch, _, values in reported[k::3]:
            assert values == {name: series[epoch - 1]["value"] for name, series in history.items()}
    done = together(
        method(), given, training=training, vmap=vmap, resume=ResumeFile(resume.path, "run")
    )
    assert all(same(a[0], b[0]) for a, b in zip(done, whole, strict=True))


def test_a_state_of_the_other_way_is_not_used(tmp_path):
    given, resume = stages(epochs=1), ResumeFile(tmp_path / "branches.pt", "run")
    found = [together(method(), given, vmap=vmap, resume=resume) for vmap in (True, False)]
    close(found[1], found[0], rtol=1e-7, atol=1e-9)


def test_threads_are_as_many_as_torch_had_and_are_left_as_they_were():
    before = torch.get_num_threads()
    seen = []

    class Counting(Mixing):
        def loss(self, batch, progress):
            seen.append(torch.get_num_threads())
            return super().loss(batch, progress)

    try:
        torch.set_num_threads(2)
        found = together(method(Counting), stages(epochs=1))
        assert torch.get_num_threads() == 2
        # a thread's own number hides what later ones begin with
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
        torch.set_num_threads(1)
        alone = together(method(Counting), stages(epochs=1))
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert all(same(a[0], b[0]) for a, b in zip(found, alone, strict=True))


@BOTH_WAYS
def test_a_loss_that_is_no_number_names_its_network(vmap):
    class Broken(Plain):
        def loss(self, batch, progress):
            found = super().loss(batch, progress)["plain"]
            dark = batch.images.double().mean() < 1
            return {"mine": found + torch.where(dark, float("nan"), 0.0)}

    sets = subsets()
    sets[1] = replace(sets[1], images=torch.zeros_like(sets[1].images))
    with pytest.raises(ValueError, match=r"'mine' is nan in epoch 1 of stage 'branch_1'"):
        together(method(Broken), stages(), sets=sets, vmap=vmap)


@BOTH_WAYS
def test_weights_that_the_last_step_spoils_name_their_network(vmap):
    class LastStep(Plain):
        def loss(self, batch, progress):
            found = super().loss(batch, progress)
            # 0 all the way, and of infinite slope at the end, for the network whose images are dark
            light = batch.images.double().mean() + (progress < 1)
            return {**found, "root": (light * self.net.head.weight.square().sum()).sqrt()}

    sets = subsets()
    sets[1] = replace(sets[1], images=torch.zeros_like(sets[1].images))
    wanted = "weights are nan or infinite in epoch 2 of stage 'branch_1': lower training.learning_r"
    with pytest.raises(ValueError, match=wanted):
        together(method(LastStep), stages(epochs=2), sets=sets, vmap=vmap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, r"differ in the name only, but epochs is 3 in 'branch_0' and 5 in 'b.*_2'"),
        ({"sampler": class_balanced}, "but sampler is None in 'branch_0'"),
        ({"training": {"learning_rate": 1.0}}, "but training is"),
    ],
)
def test_stages_that_differ_are_refused(change, message):
    given = stages()
    given[2] = replace(given[2], **change)
    with pytest.raises(ValueError, match=message):
        together(method(), given)


@pytest.mark.parametrize(
    ("change", "what"), [({"pair": class_balanced}, "pair"), ({"outliers": 0.5}, "outliers")]
)
def test_what_fine_tuning_does_not_use_is_refused(change, what):
    with pytest.raises(ValueError, match=f"stage 'branch_0' asks for {what}: train them one after"):
        together(method(), [replace(stage, **change) for stage in stages()])


def test_views_are_refused():
    class Viewing(Mixing):
        views = 2

    with pytest.raises(ValueError, match="asks for views"):
        together(method(Viewing), stages())


def test_sets_of_other_sizes_and_missing_seeds_are_refused():
    sets = subsets()
    sets[1] = toy_images((9, 8, 6, 5))
    with pytest.raises(ValueError, match=r"'branch_0' has \[29, .* 'branch_1' \[28, 1, 8, 8\]"):
        together(method(), stages(), sets=sets)
    with pytest.raises(ValueError, match="there are 3, 3 and 2"):
        together(method(), stages(), seeds=[1, 2])
    with pytest.raises(ValueError, match="there are 0, 0 and 0"):
        together(method(), [])
