"""What every method keeps to. A new file in methods/ is tested here on arrival."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from torch.nn import functional as F

import lt_pipeline
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.batches import Batch, mixed_with_itself
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import set_trainable, trained_parameters
from lt_pipeline.learning.engine.parallel import results, side_by_side
from lt_pipeline.learning.engine.protocol import Objective, objective_of
from lt_pipeline.learning.engine.trainer import fit, stage_config
from lt_pipeline.learning.evaluation.detectors import DETECTORS, DetectorConfig
from lt_pipeline.learning.experiments.config import EvaluationConfig, ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_experiment, run_stages
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.methods.families.roles import Staged
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig
from toys import FromAfar, toy_card, toy_images

CPU = torch.device("cpu")
FEW = DetectorConfig(knn=5, nnguide=5, vim_dimensions=2)
# by features of training images, by gradients, by the method's own score: ce has all detectors
SOME = ("vim", "odin", "own")
# of the project whose package is tested, which is a copy where a method was dropped in
CONF = Path(lt_pipeline.__file__).parents[2] / "conf/base"
# what conf/base makes long and does not make other: fine-tunings of a head or of what is averaged
QUICK = {"epochs": 3}
SHORT = {
    **{name: {"classifier": QUICK} for name in ("crt", "lws", "mislas", "gml")},
    "btm": {"branches": {"sets": 2, "epochs": 4}, "classifier": QUICK, "fc_classifier": QUICK},
}
EPOCHS = 4
# what it takes to learn images by heart; a margin that the difficulty makes takes longer
BY_HEART = {"dbm": 36}
# what is scored otherwise than it is learned, without that: as it learns
AS_LEARNED = {"lift": {"crops": 1}}


@pytest.fixture(scope="module", params=methods.available())
def experiment(request):
    """Return a function that makes an experiment of the method as conf/base has it, but short."""
    name = request.param
    own = yaml.safe_load((CONF / f"parameters_{name}.yml").read_text())
    short = {name: {"options": SHORT.get(name, {})}}
    config = ExperimentConfig.resolve(
        name, updated({"model": {"backbone": "resnet8"}, **own}, short)
    )

    def make(seed=0, training=None):
        mine = {"seed": seed, "device": "cpu", "training": training or TrainingConfig()}
        return Experiment(config.model_copy(update=mine), toy_card())

    return make


@pytest.fixture
def create(experiment):
    """Return a function that makes the method from a given seed."""
    return lambda seed=0: experiment(seed).build()


@pytest.fixture(scope="module")
def checkpoints(experiment):
    """Return the checkpoints of all stages, by name: of one training, which tests only read."""
    return run(experiment(0, training_config(EPOCHS)), toy_images())


@pytest.fixture
def trained(experiment, checkpoints):
    """Return the finished method of that training, the test's own."""
    return finished(experiment(0, training_config(EPOCHS)), checkpoints, toy_images())


def training_config(epochs, batch_size=32, rate=0.05):
    return TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=rate,
        warmup_epochs=1,
        schedule="cosine",
        augment=AugmentConfig(crop_padding=0, flip=0.0),
    )


def finished(experiment, checkpoints, data):
    """Return the method behind the last stage."""
    method = experiment.behind(list(checkpoints.values())[-1])
    method.post_process(data, data, CPU)
    return method


def run(experiment, data):
    """Return the checkpoints of all stages, by name, trained as everything is."""
    nothing = data[torch.arange(0)]
    with TemporaryDirectory() as name:
        folder, sets = Path(name), Sets(data, nothing, nothing, noise())
        return run_stages(experiment, experiment.stages, sets, folder, Store(folder))[0]


def trained_stages(experiment, checkpoints):
    """Yield every stage that learns, as it is after its training: method, stage, a batch of it.

    Of branches, which differ in their images only, there is the first.
    """
    one, data = experiment(0, training_config(EPOCHS)), toy_images()
    roles = set()
    for stage in one.stages:
        if not stage.trains or (stage.role == "branch" and "branch" in roles):
            continue
        roles.add(stage.role)
        method = one.build()
        method.load_weights(stage, {name: checkpoints[name] for name in stage.start})
        method.load_state_dict(checkpoints[stage.name])
        seen = data[stage.subset.draw(data.labels, 0)] if stage.subset else data
        yield method, stage, one_batch(method, stage, seen, one.config.training)


def one_batch(method, stage, data, config):
    stream = Stream(
        stage,
        data,
        stage_config(config, stage),
        views=objective_of(method, stage).views,
        seed=2,
        device=CPU,
        auxiliary=noise(),
    )
    return next(iter(stream.epoch(0.5)))


def batch(views):
    data = toy_images()
    index = torch.arange(0, len(data), 3)
    images = data.images[index]
    more = tuple(images.flip(3).roll(shift, 2) for shift in range(views))
    other = index.flip(0)
    pair = Batch(data.images[other], data.labels[other], other)
    made = Batch(images, data.labels[index], index, more, pair, noise().images)
    return mixed_with_itself(made, MixConfig(), torch.Generator().manual_seed(0))


def noise(count=20):
    shape = (count, *toy_images().shape)
    images = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    return ImageSet(images, torch.zeros(count, dtype=torch.int64), ("of no class",))


def test_stages_can_run_in_their_order_and_say_what_they_do(create):
    method = create()
    stages = method.stages(method.options)
    known = set()
    for stage in stages:
        assert set(stage.start) <= known
        known.add(stage.name)
    assert len(known) == len(stages)
    for stage in stages:
        if stage.trains:
            assert isinstance(objective_of(method, stage), Objective)
            assert dict(trained_parameters(method, stage))
        else:
            assert callable(attrgetter(stage.step)(method))


def test_stages_say_what_they_start_from_and_what_they_do(create):
    """All of it: no method has more to do where a stage begins, nor where it is a step."""
    kind = type(create())
    assert (kind.load_weights, kind.step, kind.load) == (
        Staged.load_weights,
        Staged.step,
        Staged.load,
    )


def test_loss_terms_are_finite_scalars_and_every_parameter_gets_a_gradient(create, checkpoints):
    """Of each stage's objective, what learns in it; of all together, all there is."""
    without, method = set(), create()
    stages = [stage for stage in method.stages(method.options) if stage.trains]
    for stage in stages:
        method = create()
        method.load_weights(stage, {name: checkpoints[name] for name in stage.start})
        method.train()
        objective = objective_of(method, stage)
        terms = objective.loss(batch(objective.views), 0.5)
        assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
        learning = dict(trained_parameters(method, stage))
        # BatchNorm makes the gradient of what it subtracts vanish, never that of a whole layer
        learned = {name for name, p in learning.items() if p.grad is not None}
        assert all(torch.isfinite(learning[name].grad).all() for name in learned)
        without = (without | {name for name in learning if name not in learned}) - learned
    assert without == set()


def test_what_the_criterion_follows_and_notes_is_said(create):
    method = create()
    method.criterion.notes = lambda: ["noted by the criterion"]
    method.criterion.epoch_metrics = lambda: {"criterion/followed": 1.0}
    assert "noted by the criterion" in method.notes()
    for stage in method.stages(method.options):
        if stage.trains and objective_of(method, stage) is method:
            assert "criterion/followed" in method.epoch_metrics()


def test_scores_do_not_depend_on_the_batch(trained):
    method = trained.eval()
    images = toy_images().images[:6]
    with torch.no_grad():
        together = method.score(images)
        alone = torch.cat([method.score(image[None]) for image in images])
        id_score = method.ood_score(images)
    assert together.shape == (6, 4)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert id_score.shape == (6,)
    assert torch.isfinite(id_score).all()


def test_the_same_seed_gives_the_same_checkpoints(experiment, checkpoints):
    again = run(experiment(0, training_config(EPOCHS)), toy_images())
    assert again.keys() == checkpoints.keys()
    for stage, state in checkpoints.items():
        assert all(torch.equal(again[stage][name], value) for name, value in state.items())


def test_a_checkpoint_is_the_whole_state(experiment, checkpoints):
    images = toy_images().images[:8]
    for stage, state in checkpoints.items():
        method, other = (experiment(seed).behind(state, stage).eval() for seed in (0, 5))
        with torch.no_grad():
            assert torch.equal(method.score(images), other.score(images))


def test_fold_keeps_the_scores_and_restores_into_a_folded_method(experiment, trained):
    method = trained.eval()
    images = toy_images().images[:8]
    with torch.no_grad():
        before = method.score(images)
        method.merge_for_inference()
        torch.testing.assert_close(method.score(images), before, rtol=1e-4, atol=1e-4)
        other = experiment(seed=5).finished(method.state_dict())
        assert torch.equal(other.score(images), method.score(images))


def test_it_learns_32_images_by_heart(experiment):
    data = toy_images((8, 8, 8, 8))
    name = experiment().config.method
    one = experiment(0, training_config(BY_HEART.get(name, 24), len(data), rate=0.1))
    config = one.config
    plain = config.options.model_copy(update=AS_LEARNED.get(config.method, {}))
    one = replace(one, config=config.model_copy(update={"options": plain}))
    method = finished(one, run(one, data), data).eval()
    with torch.no_grad():
        assert (method.score(data.images).argmax(1) == data.labels).float().mean() == 1


def test_diagnosing_leaves_the_method_as_it_was(trained):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    for values in trained.diagnose(toy_images(), toy_images(seed=2), CPU).values():
        assert all(torch.isfinite(torch.tensor(value)) for value in values.values())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_from_afar_it_gives_what_it_gives_in_memory(experiment, tmp_path):
    """All that a study does with it, by images of which no more than 16 come at once."""
    afar = experiment(0, training_config(1).model_copy(update={"monitor_test": True}))
    every = afar.config.method == "ce"
    judged = EvaluationConfig(
        ood=("permuted_pixels", "blurred") if every else ("blurred",),
        detectors=tuple(DETECTORS) if every else SOME,
        detector=FEW,
    )
    afar = replace(afar, config=afar.config.model_copy(update={"evaluation": judged}))
    near = Sets(toy_images(), toy_images((4,) * 4, seed=1), toy_images((6,) * 4, seed=2), noise())
    far = Sets(*(FromAfar(data, at_once=16) for data in near))
    one, other = (
        run_experiment(afar, sets, tmp_path, Store(tmp_path / name))
        for name, sets in (("near", near), ("far", far))
    )
    assert one.keys() == other.keys()
    different = {name for name in one if one[name] != other[name]}
    assert all("second" in name or "memory" in name for name in different), different


def gradients(method, stage, made, precision):
    """Return the gradient of each loss term, as a step of the engine has it."""
    set_trainable(method, stage)
    objective, epochs = objective_of(method, stage), stage.passes(EPOCHS)
    objective.start_epoch(epochs - 1, epochs)
    learning = [p for _, p in trained_parameters(method, stage) if p.requires_grad]
    config = TrainingConfig(precision=precision)
    torch.manual_seed(0)
    with autocast(config, CPU, exact=objective.needs_float32):
        terms = objective.loss(made, 0.5)
    gradient = {}
    for name, term in terms.items():
        parts = torch.autograd.grad(term, learning, retain_graph=True, allow_unused=True)
        gradient[name] = torch.cat([part.double().flatten() for part in parts if part is not None])
    return gradient


def worst_cosine(stages):
    """Return the least agreement of a term's gradient under bfloat16 with that in float64."""
    worst = {}
    for method, stage, made in stages:
        exact = gradients(copy.deepcopy(method).double(), stage, made, "float32")
        cosines = gradients(copy.deepcopy(method), stage, made, "bfloat16")
        assert cosines.keys() == exact.keys()
        for name, value in cosines.items():
            worst[f"{stage.name} {name}"] = F.cosine_similarity(value, exact[name], dim=0).item()
    return min(worst.items(), key=lambda item: item[1])


def test_every_term_of_a_trained_network_survives_bfloat16(experiment, checkpoints):
    """A term that does not says so by ``needs_float32``: see what becomes of MORE's without."""
    stages = [*trained_stages(experiment, checkpoints)]
    if not stages:
        pytest.skip("nothing is trained by gradients")
    term, cosine = worst_cosine(stages)
    assert cosine > 0.99, term


@pytest.mark.parametrize("experiment", ["more"], indirect=True)
def test_the_rebalancing_term_would_not_survive_it(experiment, checkpoints, monkeypatch):
    monkeypatch.setattr(methods.get("more"), "needs_float32", False)
    stages = [*trained_stages(experiment, checkpoints)]
    if not stages:
        pytest.skip("nothing is trained by gradients")
    term, cosine = worst_cosine(stages)
    assert cosine < 0.9
    assert term == "train rebalancing"


def test_training_side_by_side_gives_what_training_alone_does(create, two_threads):
    method, config = create(), training_config(2)
    stage = next((stage for stage in method.stages(method.options) if stage.trains), None)
    if stage is None:
        pytest.skip("nothing is trained by gradients")
    if objective_of(method, stage) is not method:
        pytest.skip("another method's training, which is seen there")
    method.load_weights(stage, {})

    def trained(seed):
        own, images = copy.deepcopy(method), toy_images((20, 10, 5, 3), seed=seed)
        given = own, stage, images, config
        fit(*given, seed=seed, device=CPU, auxiliary=toy_images(seed=7))
        return own.state_dict()

    tasks = [partial(trained, seed) for seed in (3, 4)]
    for state, task in zip(results(side_by_side(tasks, CPU)), tasks, strict=True):
        for name, value in task().items():
            assert torch.equal(state[name], value), name


@pytest.mark.gpu
def test_it_moves_to_the_gpu_whole(create):
    method = create().to("cuda").train()
    stage = method.stages(method.options)[0]
    objective = objective_of(method, stage)
    sum(objective.loss(on_gpu(batch(objective.views)), 0.5).values()).backward()
    assert all(p.grad.is_cuda for p in method.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in method.parameters())


def on_gpu(made):
    """Return a batch, or a part of one, with all that it brings on the GPU."""
    if isinstance(made, torch.Tensor):
        return made.to("cuda")
    if isinstance(made, tuple):
        parts = [on_gpu(part) for part in made]
        return type(made)(*parts) if hasattr(made, "_fields") else tuple(parts)
    return made
