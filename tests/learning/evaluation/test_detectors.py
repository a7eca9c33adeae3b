from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from pytorch_ood.detector import NNGuide, ViM
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from lt_pipeline.learning import methods
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.evaluation import detectors as module
from lt_pipeline.learning.evaluation.detectors import (
    DETECTORS,
    FITTED,
    DetectorConfig,
    ModelOutputs,
    OwnNetwork,
    build_detectors,
    extract_outputs,
    linear_readout,
)
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import COUNTS, toy_card, toy_images

CPU = torch.device("cpu")
CLASSES = len(COUNTS)
SMALL = DetectorConfig(knn=3, nnguide=4)
COSINE = {"head": "cosine", "scale": 16.0}
CASES = {
    "linear": ("ce", {}, {}),
    "cosine": ("balanced_softmax", COSINE, {}),
    "linear experts": ("sade", {}, {}),
    "cosine experts": ("lgla", COSINE, {}),
    "darl": ("darl", COSINE, {}),
    "fused by gates": ("dqroute", COSINE, {}),
    "routed": ("ride", COSINE, {"route": True}),
}
# a method may be deleted
KINDS = [kind for kind, (name, *_) in CASES.items() if name in methods.available()]
HEADS = [kind for kind in KINDS if kind in ("linear", "cosine", "linear experts", "cosine experts")]


def fresh(kind="linear", channels=1, **more):
    name, model, options = CASES[kind]
    own = {"options": {**options, **more}}
    config = ExperimentConfig.resolve(name, {"model": {"backbone": "resnet8", **model}, name: own})
    torch.manual_seed(0)
    return methods.get(name)(config.options, config.model, toy_card(channels=channels)).eval()


@functools.cache
def trained(kind):
    """A method as the pipeline leaves it, which tests must not change."""
    method, data = fresh(kind), toy_images()
    config = TrainingConfig(
        epochs=12,
        batch_size=25,
        learning_rate=0.05,
        warmup_epochs=1,
        schedule="step",
        augment=AugmentConfig(crop_padding=0, flip=0.0),
    )
    for number, stage in enumerate(method.stages(method.options)):
        fit(method, stage, data, config, seed=number, device=CPU)
    method.post_process(data, data, CPU)
    method.merge_for_inference()
    return method.eval()


def inside(count=5):
    return toy_images((count,) * CLASSES, seed=7).images


def noise(count=20, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(11)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def build(name, method, train=None, config=SMALL, **changes):
    config = config.model_copy(update=changes)
    return build_detectors([name], method, train or toy_images(), config, CPU)[name]


def scores(name, method, images, **changes):
    return build(name, method, **changes)(extract_outputs(method, images, CPU))


def answers(**known):
    """What was seen of images of which only ``known`` is known."""
    return ModelOutputs(**{name: known.get(name, torch.empty(0)) for name in ModelOutputs._fields})


def features_of(method, images):
    with torch.no_grad():
        return method.net.features(images)


# every detector, every kind of method


@pytest.mark.parametrize("kind", KINDS)
def test_every_detector_scores_every_kind_of_method_each_image_by_itself(kind):
    method, few = trained(kind), inside(1)
    together = extract_outputs(method, few, CPU)
    alone = [extract_outputs(method, image[None], CPU) for image in few]
    detectors = build_detectors(tuple(DETECTORS), method, toy_images(), SMALL, CPU)
    assert list(detectors) == list(DETECTORS)
    for name, detector in detectors.items():
        id_score = detector(together)
        assert id_score.shape == (len(few),), name
        assert id_score.is_floating_point(), name
        assert not id_score.requires_grad, name
        assert torch.isfinite(id_score).all(), name
        each = torch.cat([detector(seen) for seen in alone])
        torch.testing.assert_close(id_score, each, rtol=1e-3, atol=1e-4, msg=name)
        assert id_score.unique().numel() > 1, name


@pytest.mark.parametrize("kind", KINDS)
def test_after_training_every_detector_ranks_patterns_it_knows_above_noise(kind):
    method = trained(kind)
    known, strange = extract_outputs(method, inside(), CPU), extract_outputs(method, noise(), CPU)
    detectors = build_detectors(tuple(DETECTORS), method, toy_images(), SMALL, CPU)
    truth = [1] * len(known.images) + [0] * len(strange.images)
    areas = {
        name: roc_auc_score(truth, torch.cat([detector(known), detector(strange)]).numpy())
        for name, detector in detectors.items()
    }
    assert min(areas.values()) > 0.75, areas


@pytest.mark.parametrize("name", DETECTORS)
def test_only_the_fitted_ones_look_at_training_images(name):
    method, seen = fresh(), []
    method.net.backbone.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    detector = build(name, method)
    assert sum(seen) == (sum(COUNTS) if name in FITTED else 0)
    before = len(seen)
    detector(answers(images=inside(), **random_answers(method, inside())))
    assert len(seen) == before + {"own": 1, "odin": 2}.get(name, 0)


def random_answers(method, images):
    generator = torch.Generator().manual_seed(5)
    draws = torch.randn(2, len(images), CLASSES, generator=generator)
    width = torch.rand(len(images), method.net.width, generator=generator)
    return {"scores": draws[0], "logits": draws[1], "features": width}


def test_the_fitted_ones_are_among_the_detectors():
    assert set(FITTED) < set(DETECTORS)


def test_many_images_are_looked_at_in_parts(monkeypatch):
    method, images, sizes = trained("linear"), inside(5), []
    whole = scores("odin", method, images)
    monkeypatch.setattr(module, "BATCH", 7)
    detector, seen = build("odin", method), answers(images=images)
    hook = method.net.backbone.register_forward_hook(lambda _, x, __: sizes.append(len(x[0])))
    scored = detector(seen)
    hook.remove()
    torch.testing.assert_close(scored, whole, rtol=1e-3, atol=1e-5)
    assert sizes == [7, 7, 7, 7, 6, 6]


def test_colour_images_of_another_size_are_taken():
    method = fresh(channels=3)
    train = toy_images(channels=3, size=12)
    seen = extract_outputs(method, train.images[::9], CPU)
    for name, detector in build_detectors(tuple(DETECTORS), method, train, SMALL, CPU).items():
        assert torch.isfinite(detector(seen)).all(), name


def test_an_unknown_detector_gets_the_nearest_name():
    with pytest.raises(ValueError, match="unknown detector 'energi': did you mean 'energy'"):
        build_detectors(["msp", "energi"], fresh(), toy_images(), SMALL, CPU)


def test_what_was_seen_is_what_the_method_says():
    method, images = trained("linear"), inside(2)
    seen = extract_outputs(method, images, CPU)
    with torch.no_grad():
        torch.testing.assert_close(seen.scores, method.score(images))
        torch.testing.assert_close(seen.logits, method.net(images))
        torch.testing.assert_close(seen.features, method.net.features(images))
    assert seen.images is images


# the linear readout


@pytest.mark.parametrize("kind", HEADS)
def test_the_readout_times_the_features_is_what_the_method_classifies_by(kind):
    method, images = fresh(kind), inside(3)
    for parameter in method.net.head.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    features = features_of(method, images)
    flat, weight, bias = linear_readout(method.net.head, features)
    assert weight.shape == (CLASSES, flat.shape[1])
    assert bias.shape == (CLASSES,)
    assert not weight.requires_grad
    assert not bias.requires_grad
    with torch.no_grad():
        wanted = method.classify(features)
    torch.testing.assert_close(flat @ weight.T + bias, wanted, rtol=1e-4, atol=1e-4)


# ODIN


@pytest.mark.parametrize("kind", KINDS)
def test_odin_without_a_step_at_temperature_1_is_msp(kind):
    method, images = trained(kind), inside(2)
    odin = scores("odin", method, images, odin_epsilon=0.0, odin_temperature=1.0)
    torch.testing.assert_close(odin, scores("msp", method, images), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        likeliest = method.score(images).softmax(1).amax(1).double()
    torch.testing.assert_close(odin, likeliest, rtol=1e-4, atol=1e-6)


def odin_by_hand(method, images, epsilon, temperature):
    """DARL, equation 11, in float64: pixels are 0..255, so that a step of 1 would be 255."""
    x = images.double().requires_grad_()
    log_p = (method.score(x) / temperature).log_softmax(1)
    loss = -log_p.gather(1, log_p.argmax(1, keepdim=True)).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        stepped = method.score(x - 255 * epsilon * gradient.sign())
        return (stepped / temperature).softmax(1).amax(1)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("epsilon", [0.0014, 0.02])
def test_odin_is_equation_11_in_float64(epsilon, temperature):
    method = fresh().double()
    images = inside(3)
    told = {"odin_epsilon": epsilon, "odin_temperature": temperature}
    scored = build("odin", method, **told)(answers(images=images))
    assert scored.dtype == torch.float64
    wanted = odin_by_hand(method, images, epsilon, temperature)
    # in units of logits, as at a high temperature all probabilities are nearly 1 / C
    torch.testing.assert_close(
        temperature * CLASSES * scored, temperature * CLASSES * wanted, rtol=0, atol=1e-4
    )


def test_the_step_makes_the_predicted_class_more_probable_and_a_longer_one_more_so():
    method, images = trained("linear"), torch.cat([inside(3), noise()])
    still, short, long = (
        scores("odin", method, images, odin_epsilon=epsilon, odin_temperature=1000.0)
        for epsilon in (0.0, 0.0014, 0.005)
    )
    assert (short > still).all()
    assert (long > short).double().mean() > 0.9


def test_at_temperature_1000_odin_ranks_by_the_largest_logit_above_their_mean():
    method, images = trained("linear"), torch.cat([inside(5), noise()])
    scored = scores("odin", method, images, odin_epsilon=0.0, odin_temperature=1000.0)
    with torch.no_grad():
        logits = method.score(images).double()
    above = logits.amax(1) - logits.mean(1)
    torch.testing.assert_close(scored, (1 + above / 1000) / CLASSES, rtol=1e-4, atol=0)
    # the second order moves ranks only where the first is all but equal
    ranked = above.argsort()
    assert (scored[ranked].diff() > -1e-9)[above[ranked].diff() > above.max() ** 2 / 1000].all()
    assert np.corrcoef(scored.argsort().argsort(), above.argsort().argsort())[0, 1] > 0.98


def test_odin_takes_no_gradient_of_parameters_and_works_where_gradients_are_off():
    method, images = fresh(), inside(2)
    wanted = scores("odin", method, images)
    with torch.no_grad():
        scored = scores("odin", method, images)
    assert torch.equal(scored, wanted)
    assert all(parameter.grad is None for parameter in method.parameters())


def test_odin_judges_in_evaluation_mode_and_leaves_images_and_buffers_alone():
    method, images = fresh(), inside(2)
    detector, seen = build("odin", method), answers(images=images.clone())
    wanted = detector(seen)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    assert torch.equal(detector(seen), wanted)
    assert torch.equal(seen.images, images)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


# of scores and logits alone


@pytest.fixture
def logits():
    return 4 * torch.randn(9, CLASSES, generator=torch.Generator().manual_seed(2))


def test_own_is_the_method_s_own_score():
    method, images = trained("linear"), inside(2)
    with torch.no_grad():
        torch.testing.assert_close(scores("own", method, images), method.ood_score(images))


def test_msp_reads_scores_and_the_others_logits(logits):
    seen = answers(scores=logits, logits=logits.flip(0))
    p = logits.double().softmax(1)
    torch.testing.assert_close(build("msp", fresh())(seen), p.amax(1))
    torch.testing.assert_close(build("max_logit", fresh())(seen), logits.flip(0).amax(1).double())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_energy_is_the_tempered_logsumexp(logits, temperature):
    scored = build("energy", fresh(), energy_temperature=temperature)(answers(logits=logits))
    wanted = temperature * (logits.double() / temperature).exp().sum(1).log()
    torch.testing.assert_close(scored, wanted)


def test_entropy_and_gen_are_their_formulas(logits):
    seen, p = answers(logits=logits), logits.double().softmax(1)
    entropy = -(p * p.log()).sum(1)
    torch.testing.assert_close(build("entropy", fresh())(seen), -entropy, rtol=1e-4, atol=1e-5)
    # Liu et al., GEN (2023): gamma = 0.1; the library takes the mean over the classes
    gen = (p**0.1 * (1 - p) ** 0.1).mean(1)
    torch.testing.assert_close(build("gen", fresh())(seen), -gen, rtol=1e-4, atol=1e-5)


def test_large_logits_stay_finite():
    seen = answers(logits=torch.tensor([[5e4, 0.0, -5e4, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    for name in ("energy", "max_logit", "entropy", "gen"):
        scored = build(name, fresh())(seen)
        assert torch.isfinite(scored).all(), name
        assert scored[0] > scored[1], name


@pytest.mark.skipif("fused by gates" not in KINDS, reason="there is no dqroute")
def test_dqroute_has_the_energy_of_its_routed_logits_not_of_its_log_probabilities():
    method, images = trained("fused by gates"), inside(2)
    seen = extract_outputs(method, images, CPU)
    with torch.no_grad():
        routed = method.classify(method.net.features(images))
    torch.testing.assert_close(seen.logits, routed, rtol=1e-4, atol=1e-4)
    scored = build("energy", method)(seen)
    torch.testing.assert_close(scored, routed.double().logsumexp(1), rtol=1e-4, atol=1e-4)
    # the log-probabilities' would be 0 of every image
    assert seen.scores.logsumexp(1).abs().max() < 1e-4 < scored.abs().min()


# of features, by references


def side_by_side(method, images):
    """Features in float64, those of K experts each of unit length."""
    features = features_of(method, images).double()
    if features.ndim == 3:
        features = (features / features.norm(dim=2, keepdim=True)).flatten(1)
    return features


FEATURED = [kind for kind in KINDS if kind in ("linear", "linear experts")]


@pytest.mark.parametrize("kind", FEATURED)
@pytest.mark.parametrize("k", [1, 5])
def test_knn_is_the_distance_to_the_kth_nearest_training_image(kind, k):
    method, images = trained(kind), torch.cat([inside(2), noise(4)])
    train, test = (side_by_side(method, x) for x in (toy_images().images, images))
    train, test = (x / x.norm(dim=1, keepdim=True) for x in (train, test))
    distance = (test[:, None] - train).norm(dim=2).sort(1).values[:, k - 1]
    scored = scores("knn", method, images, knn=k)
    torch.testing.assert_close(scored, -distance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_nnguide_is_the_energy_times_that_of_near_training_images(kind):
    method, images = trained(kind), torch.cat([inside(2), noise(4)])

    def parts(x):
        features, weight, bias = linear_readout(method.net.head, features_of(method, x))
        features, weight, bias = (part.double() for part in (features, weight, bias))
        energy = (features @ weight.T + bias).logsumexp(1)
        return features / features.norm(dim=1, keepdim=True), energy

    (bank, bank_energy), (unit, energy) = parts(toy_images().images), parts(images)
    guidance = [sorted((bank @ z) * bank_energy, reverse=True)[:4] for z in unit]
    wanted = torch.stack([sum(near) / 4 for near in guidance]) * energy
    scored = scores("nnguide", method, images, nnguide=4)
    torch.testing.assert_close(scored.double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dimensions", [None, 5])
def test_vim_takes_from_the_energy_what_lies_off_the_principal_space(kind, dimensions):
    method, images = trained(kind), torch.cat([inside(2), noise(4)])
    train, weight, bias = (
        part.double().numpy()
        for part in linear_readout(method.net.head, features_of(method, toy_images().images))
    )
    test = linear_readout(method.net.head, features_of(method, images))[0].double().numpy()
    spanned = np.linalg.matrix_rank(train, tol=1e-5)
    wanted = vim(train, weight, bias, test, dimensions or spanned // 2)
    scored = scores("vim", method, images, vim_dimensions=dimensions)
    np.testing.assert_allclose(scored, wanted, rtol=1e-4, atol=1e-4)


def test_vim_and_nnguide_are_those_of_pytorch_ood_run_by_themselves():
    method, images, train = trained("linear"), inside(2), toy_images()
    head = method.net.head
    own, other = (features_of(method, x) for x in (train.images, images))
    vim = ViM(None, 9, head.weight, head.bias).fit_features(own, train.labels)
    scored = scores("vim", method, images, vim_dimensions=9)
    # the library computes in float32
    torch.testing.assert_close(scored.float(), -vim.predict_features(other), rtol=1e-3, atol=1e-3)
    guide = NNGuide(None, head, 6).fit_features(own, train.labels)
    scored = scores("nnguide", method, images, nnguide=6)
    torch.testing.assert_close(scored, -guide.predict_features(other))


@pytest.mark.parametrize("kind", KINDS)
def test_react_that_clips_nothing_is_energy(kind):
    method, images = trained(kind), toy_images().images[::6]
    for temperature in (1.0, 3.0):
        told = {"energy_temperature": temperature}
        react = scores("react", method, images, react_percentile=1 - 1e-9, **told)
        energy = scores("energy", method, images, **told)
        torch.testing.assert_close(react, energy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_react_classifies_features_clipped_at_a_percentile_of_the_training_ones(kind):
    method, images = trained(kind), torch.cat([inside(2), noise(4)])
    bound = np.percentile(features_of(method, toy_images().images).numpy(), 60)
    features = features_of(method, images)
    assert (features > bound).any()
    with torch.no_grad():
        wanted = method.classify(features.clamp(max=bound)).double().logsumexp(1)
    scored = scores("react", method, images, react_percentile=0.6)
    torch.testing.assert_close(scored, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scored, scores("energy", method, images), rtol=1e-3)


def mahalanobis(train, labels, test):
    """Squared distances to all classes, by scikit-learn's maximum likelihood covariance."""
    means = [train[labels == c].mean(0) for c in np.unique(labels)]
    centred = np.concatenate([train[labels == c] - m for c, m in enumerate(means)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(centred)
    return np.stack([covariance.mahalanobis(test - m) for m in means], 1)


@pytest.mark.parametrize("kind", FEATURED)
def test_mahalanobis_and_its_relative_are_of_scikit_learns_covariances(kind):
    generator = torch.Generator().manual_seed(3)
    method = fresh(kind)
    experts = (3,) if kind.endswith("experts") else ()
    labels = torch.arange(CLASSES).repeat(60)
    means = torch.randn(CLASSES, *experts, 6, generator=generator)
    train = means[labels] + 0.3 * torch.randn(len(labels), *experts, 6, generator=generator)
    test = torch.randn(30, *experts, 6, generator=generator)
    fitting = module.DetectorContext(method, SMALL, CPU, answers(features=train), labels)

    def flat(x):
        x = x.double()
        return (x if x.ndim == 2 else (x / x.norm(dim=2, keepdim=True)).flatten(1)).numpy()

    to_classes = mahalanobis(flat(train), labels.numpy(), flat(test))
    to_all = mahalanobis(flat(train), np.zeros(len(labels)), flat(test))
    seen = answers(features=test)
    scored = DETECTORS["mahalanobis"](fitting)(seen)
    np.testing.assert_allclose(scored, -to_classes.min(1), rtol=1e-6)
    relative = DETECTORS["relative_mahalanobis"](fitting)(seen)
    np.testing.assert_allclose(relative, -(to_classes - to_all).min(1), rtol=1e-6)


def vim(train, weight, bias, test, dimensions):
    """ViM as its authors write it, in float64."""
    origin = -np.linalg.pinv(weight) @ bias
    values, vectors = np.linalg.eigh((train - origin).T @ (train - origin))
    rest = vectors[:, np.argsort(-values)[dimensions:]]
    off, away = (np.linalg.norm((x - origin) @ rest, axis=1) for x in (train, test))
    alpha = (train @ weight.T + bias).max(1).mean() / off.mean()
    return np.log(np.exp(test @ weight.T + bias).sum(1)) - alpha * away


@pytest.mark.parametrize("name", ["vim", "mahalanobis", "relative_mahalanobis"])
def test_whatever_takes_a_covariance_is_exact_where_its_axes_differ_by_10_000(name):
    generator = torch.Generator().manual_seed(8)
    method = fresh()
    width = method.net.width
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    axes = torch.logspace(0, -4, width)[:, None] * turn
    labels = torch.arange(CLASSES).repeat(250)
    train = torch.randn(len(labels), width, generator=generator) @ axes + 1
    test = torch.randn(200, width, generator=generator) @ axes + 1
    told = SMALL.model_copy(update={"vim_dimensions": 50})
    fitting = module.DetectorContext(method, told, CPU, answers(features=train), labels)
    scored = DETECTORS[name](fitting)(answers(features=test)).numpy()
    head = [part.detach().double().numpy() for part in method.net.head.parameters()]
    train, test, labels = train.double().numpy(), test.double().numpy(), labels.numpy()
    if name == "vim":
        wanted = vim(train, *head, test, 50)
    else:
        distances = mahalanobis(train, labels, test)
        if name == "relative_mahalanobis":
            distances = distances - mahalanobis(train, np.zeros_like(labels), test)
        wanted = -distances.min(1)
    assert np.abs(scored - wanted).max() < 1e-5 * wanted.std()


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis"])
def test_features_that_never_vary_count_for_nothing_and_copies_only_once(name):
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(2).repeat(50)
    train, test = (torch.rand(n, 5, generator=generator) for n in (100, 20))

    def scored(train, test):
        fitting = module.DetectorContext(fresh(), SMALL, CPU, answers(features=train), labels)
        return DETECTORS[name](fitting)(answers(features=test))

    def widened(x, dead):
        return torch.cat([x, torch.full((len(x), 1), dead), x[:, :1] / 3], 1)

    wide = scored(widened(train, 0.0), widened(test, 2.0))
    assert torch.isfinite(wide).all()
    torch.testing.assert_close(wide, scored(train, test), rtol=1e-3, atol=1e-3)


def test_labels_need_not_be_contiguous_where_a_fit_is_by_class():
    train = toy_images()
    kept = train[train.labels != 1]
    for name in ("mahalanobis", "relative_mahalanobis"):
        assert torch.isfinite(
            build(name, trained("linear"), kept)(extract_outputs(trained("linear"), inside(), CPU))
        ).all()


# what cannot be


@pytest.mark.parametrize("name", ["knn", "nnguide"])
def test_more_neighbours_than_training_images_are_refused(name):
    images = sum(COUNTS)
    build(name, fresh(), **{name: images})
    wanted = f"evaluation.detector.{name} must be at most the {images} training images, but is 76"
    with pytest.raises(ValueError, match=wanted):
        build(name, fresh(), **{name: images + 1})


def test_a_principal_space_of_all_features_is_refused():
    width = fresh().net.width
    many = toy_images((50,) * CLASSES)
    build("vim", fresh(), many, vim_dimensions=width - 1)
    with pytest.raises(ValueError, match="vim_dimensions must be below the 64 dimensions"):
        build("vim", fresh(), many, vim_dimensions=width)


def test_a_principal_space_that_leaves_training_images_no_residual_is_refused():
    few = toy_images((5,) * CLASSES)
    build("vim", fresh(), few, vim_dimensions=19)
    with pytest.raises(ValueError, match="below the 20 dimensions .* but is 20"):
        build("vim", fresh(), few, vim_dimensions=20)


@pytest.mark.skipif("linear experts" not in KINDS, reason="there is no sade")
def test_experts_that_share_their_features_have_these_dimensions_once():
    method = fresh("linear experts", shared="all")
    many = toy_images((50,) * CLASSES)
    with pytest.raises(ValueError, match="below the 64 dimensions"):
        build("vim", method, many, vim_dimensions=3 * method.net.width // 2)
    seen = extract_outputs(method, inside(), CPU)
    for name in FITTED:
        assert torch.isfinite(build(name, method, many)(seen)).all(), name


@pytest.mark.parametrize(
    "wrong",
    [{"react_percentile": 1.0}, {"knn": 0}, {"odin_epsilon": -0.1}, {"odin_temperature": 0.0}],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DetectorConfig(**wrong)


@pytest.mark.parametrize("bias", [True, False])
def test_ones_own_network_is_judged_as_a_method_with_the_same_layers(bias):
    method = fresh("linear")
    if not bias:
        method.net.head.bias.data.zero_()
    head = torch.nn.Linear(*method.net.head.weight.shape[::-1], bias=bias)
    head.load_state_dict(method.net.head.state_dict(), strict=bias)
    own = OwnNetwork(torch.nn.Sequential(method.net.normalize, method.net.backbone), head)
    for name, detector in build_detectors(tuple(DETECTORS), own, toy_images(), SMALL).items():
        wanted = scores(name, method, inside())
        assert torch.allclose(
            detector(extract_outputs(own, inside())), wanted, rtol=1e-4, atol=1e-5
        ), name


def test_a_head_that_no_detector_can_look_into_is_refused():
    with pytest.raises(
        ValueError, match=r"head must be nn.Linear or CosineHead, but is Sequential"
    ):
        OwnNetwork(torch.nn.Flatten(), torch.nn.Sequential())
