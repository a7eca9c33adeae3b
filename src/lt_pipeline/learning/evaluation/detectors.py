"""Detectors of images that belong to no training class, by name; most are pytorch-ood's.

Each judges a finished method from outside: by its scores, its logits, its features, or by how an
image answers a small push (ODIN). Where images have several labels, those do that need no softmax
and no one class of an image: the highest probability is of a sigmoid, and the energy the sum of the
labels' own (JointEnergy: Wang et al., Can multi-label classification networks know what they don't
know?, NeurIPS 2021, equation 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lt_pipeline.learning.data.protocol import Images, Pixels, in_order
from lt_pipeline.learning.engine.device import enough_threads
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.methods.families.roles import Classifier
from lt_pipeline.learning.models.experts import ExpertHeads
from lt_pipeline.learning.models.heads import CosineHead, l2_normalize
from lt_pipeline.learning.models.network import Network
from lt_pipeline.learning.schema import Config, UserError, unknown

BATCH = 256
CPU = torch.device("cpu")


class DetectorConfig(Config):
    """What the detectors can be told; those that fit something fit it to the training images.

    Attributes:
        odin_temperature: T of ODIN; the one of OpenOOD.
        odin_epsilon: size of ODIN's step as a fraction of the pixel range; 0 is no step.
        energy_temperature: T of the energy.
        knn: which nearest training image's distance counts.
        nnguide: how many nearest training images guide the energy.
        vim_dimensions: of the principal space; null is half of those that the features have.
        react_percentile: of the training features, where activations are clipped.
    """

    symbols: ClassVar[Mapping[str, str]] = {"T": "odin_temperature", "epsilon": "odin_epsilon"}

    odin_temperature: PositiveFloat = 1000.0
    odin_epsilon: NonNegativeFloat = 0.0014
    energy_temperature: PositiveFloat = 1.0
    knn: PositiveInt = 50
    nnguide: PositiveInt = 10
    vim_dimensions: PositiveInt | None = None
    react_percentile: float = Field(default=0.9, gt=0, lt=1)


class OwnNetwork(Classifier):
    """A network of one's own as detectors take a method.

    ``backbone`` maps images ``[N, channels, H, W]`` in 0..255 to features ``[N, F]``, and ``head``
    those to logits ``[N, C]``.

    Raises:
        UserError: if ``head`` is neither linear nor a cosine head, which detectors look into.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear | CosineHead) -> None:
        super().__init__()
        if not isinstance(head, nn.Linear | CosineHead):
            raise UserError(f"head must be nn.Linear or CosineHead, but is {type(head).__name__}")
        self.net = Network(nn.Identity(), backbone, head)


class ModelOutputs(NamedTuple):
    """A method's answers to N images, a set or uint8 ``[N, C, H, W]``.

    ``scores`` and ``logits`` are ``[N, C]``; ``features`` are ``[N, F]``, or ``[N, K, F]`` of K
    experts.
    """

    images: Pixels | Tensor
    scores: Tensor
    logits: Tensor
    features: Tensor


NO_OUTPUTS = ModelOutputs(*[torch.empty(0)] * 4)
# what was seen of images -> how much each looks like the training classes [N], higher is more
Detector = Callable[[ModelOutputs], Tensor]


class DetectorContext(NamedTuple):
    """What a detector is made from; ``train`` are the answers to the training images."""

    method: Classifier
    config: DetectorConfig
    device: torch.device
    train: ModelOutputs
    labels: Tensor

    @property
    def several(self) -> bool:
        """Return whether images have several labels."""
        return self.labels.ndim == 2

    @property
    def known(self) -> Tensor:
        """Return a number that is no class of none, ``[N]``, for libraries that leave such out."""
        return torch.zeros(len(self.labels), dtype=torch.int64)


def extract_outputs(
    method: Classifier, images: Pixels | Tensor, device: torch.device = CPU
) -> ModelOutputs:
    """Return what ``method`` answers to ``images``, a set or ``[N, C, H, W]``, on the CPU."""
    features = predict(method, method.net.features, images, device=device)
    logits = predict(method, method.classify, features, device=device)
    scores = logits
    if type(method).score is not Classifier.score:  # more than its logits
        scores = predict(method, method.score, images, device=device)
    return ModelOutputs(images, scores, logits, features)


def build_detectors(
    names: Sequence[str],
    method: Classifier,
    train: Images,
    config: DetectorConfig | None = None,
    device: torch.device = CPU,
) -> dict[str, Detector]:
    """Return the detectors ``names`` for the finished ``method``, fitted where they have to be.

    One's own network is a method as ``OwnNetwork``.

    Raises:
        UserError: if there is no such detector, it needs more training images than there are, or
            none of them is of several labels, which the images have.
    """
    for name in names:
        check_name(name)
    if train.labels.ndim == 2:
        names = of_several(names)
    method.to(device)
    fits = any(name in FITTED for name in names)
    seen = extract_outputs(method, train, device) if fits else NO_OUTPUTS
    fitting = DetectorContext(method, config or DetectorConfig(), device, seen, train.labels.cpu())
    return {name: DETECTORS[name](fitting) for name in names}


def of_several(names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that say something of images with several labels.

    Raises:
        UserError: naming them, if none does.
    """
    usable = [name for name in names if name in SEVERAL]
    if not usable:
        raise UserError(
            f"evaluation.detectors: {', '.join(names)} rest on a softmax or on the one class of an "
            f"image, and images have several labels: choose among {', '.join(SEVERAL)}"
        )
    return usable


def joint_energy(logits: Tensor, temperature: float) -> Tensor:
    """Return minus the sum over labels of T log(1 + exp(z_c / T)), ``[N]``: low for ID images.

    ``logits`` z are ``[N, C]``.
    """
    return -temperature * torch.nn.functional.softplus(logits / temperature).sum(1)


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest name, where there is no such detector."""
    if name not in DETECTORS:
        raise UserError(unknown("detector", name, DETECTORS))


def linear_readout(head: Any, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features ``[N, F]``, weight ``[C, F]`` and bias ``[C]`` whose product is the logits.

    ``features`` are what ``head`` takes, on the CPU. For K experts the logits are the mean of
    theirs and F counts the features of all of them.
    """
    weight = head.weight.detach().cpu()
    if not hasattr(head, "bias"):  # a cosine head
        features, weight = l2_normalize(features), head.scale * l2_normalize(weight)
    given = getattr(head, "bias", None)
    bias = torch.zeros(weight.shape[:-1]) if given is None else given.detach().cpu()
    if isinstance(head, ExpertHeads):
        experts = len(weight)
        weight, bias = weight.transpose(0, 1).flatten(1) / experts, bias.mean(0)
    return features.flatten(1), weight, bias


def _flat(features: Tensor) -> Tensor:
    """Return features ``[N, F]``; those of K experts side by side, each of unit length."""
    return features if features.ndim == 2 else l2_normalize(features).flatten(1)


def _library(name: str) -> Any:
    """Return a class of pytorch-ood, which takes seconds to import."""
    return getattr(import_module("pytorch_ood.detector"), name)


def _own(fitting: DetectorContext) -> Detector:
    method, device = fitting.method, fitting.device
    return lambda seen: predict(method, method.ood_score, seen.images, device=device)


def _msp(fitting: DetectorContext) -> Detector:
    if fitting.several:
        return lambda seen: seen.scores.double().sigmoid().amax(1)
    return lambda seen: -_library("MaxSoftmax").score(seen.scores.double())


def _odin(fitting: DetectorContext) -> Detector:
    """DARL, equation 11: the loss is the cross-entropy of the predicted class at T.

    In float64, as at T = 1000 the scores of two images differ in the fifth digit.
    """
    method, config, device = fitting.method, fitting.config, fitting.device
    detector = _library("ODIN")(
        lambda images: method.score(images).double(),
        # networks take pixels in 0..255 and normalise by themselves
        eps=255 * config.odin_epsilon,
        temperature=config.odin_temperature,
    )

    def score(seen: ModelOutputs) -> Tensor:
        method.eval()
        scores = []
        for part in in_order(seen.images, BATCH):
            with enough_threads(device, part.shape):
                scores.append(-detector.predict(part.to(device).float()).cpu())
        return torch.cat(scores)

    return score


def _of_logits(name: str) -> Callable[[DetectorContext], Detector]:
    """Return the builder of pytorch-ood's detector ``name``, which looks at logits alone."""

    def build(fitting: DetectorContext) -> Detector:
        score = _library(name).score
        return lambda seen: -score(seen.logits.double())

    return build


def _energies(fitting: DetectorContext) -> Callable[[Tensor], Tensor]:
    """Return the function from logits ``[N, C]`` to energies ``[N]``: low for ID images."""
    temperature = fitting.config.energy_temperature
    if fitting.several:
        return lambda logits: joint_energy(logits.double(), temperature)
    score = _library("EnergyBased").score
    return lambda logits: score(logits.double(), temperature)


def _energy(fitting: DetectorContext) -> Detector:
    energies = _energies(fitting)
    return lambda seen: -energies(seen.logits)


def _knn(fitting: DetectorContext) -> Detector:
    check_neighbours("knn", fitting.config, len(fitting.labels))
    detector = _library("KNN")(None, fitting.config.knn)
    detector.fit_features(_flat(fitting.train.features), fitting.known)
    return lambda seen: -detector.predict_features(_flat(seen.features))


def _nnguide(fitting: DetectorContext) -> Detector:
    check_neighbours("nnguide", fitting.config, len(fitting.labels))
    head = fitting.method.net.head
    features, weight, bias = linear_readout(head, fitting.train.features)
    detector = _library("NNGuide")(None, lambda z: z @ weight.T + bias, fitting.config.nnguide)
    detector.fit_features(features, fitting.labels)
    return lambda seen: -detector.predict_features(linear_readout(head, seen.features)[0])


def _vim(fitting: DetectorContext) -> Detector:
    """Wang et al. (2022): the energy, less how far an image lies off the principal space.

    In float64: pytorch-ood's covariance is float32, in which variances below 1e-7 of the largest
    are noise, and the residual lies along those.
    """
    head = fitting.method.net.head
    train, weight, bias = (part.double() for part in linear_readout(head, fitting.train.features))
    spanned = len(_axes(train)[0])
    dimensions = fitting.config.vim_dimensions or spanned // 2
    check_dimensions(dimensions, spanned)
    # where all logits are 0, nearly; weights come from float32, and what is rounding there is 0
    rounding = max(weight.shape) * torch.finfo(torch.float32).eps
    origin = -torch.linalg.pinv(weight, rtol=rounding) @ bias
    centred = train - origin
    # from the smallest variance to the largest
    rest = torch.linalg.eigh(centred.T @ centred)[1][:, : train.shape[1] - dimensions]
    logits, off = train @ weight.T + bias, torch.linalg.vector_norm(centred @ rest, dim=1)
    alpha = logits.amax(1).mean() / off.mean()

    def score(seen: ModelOutputs) -> Tensor:
        features = linear_readout(head, seen.features)[0].double()
        residual = torch.linalg.vector_norm((features - origin) @ rest, dim=1)
        id_score: Tensor = (features @ weight.T + bias).logsumexp(1) - alpha * residual
        return id_score

    return score


def _react(fitting: DetectorContext) -> Detector:
    method, device = fitting.method, fitting.device
    detector = _library("ReAct")(
        None,
        lambda features: predict(method, method.classify, features, device=device),
        percentile=fitting.config.react_percentile,
        detector=_energies(fitting),
    ).fit_feature_maps(fitting.train.features, fitting.known)
    return lambda seen: -detector.predict_feature_maps(seen.features)


def _mahalanobis(fitting: DetectorContext) -> Detector:
    """Lee et al. (2018): the nearest class mean, with one covariance for all classes.

    pytorch-ood keeps the covariance in float32: where features repeat each other, as those of
    experts that share a backbone, its inverse is noise.
    """
    to_classes = _distances(fitting.train.features, fitting.labels)
    return lambda seen: -to_classes(seen.features).amin(1)


def _relative_mahalanobis(fitting: DetectorContext) -> Detector:
    """Ren et al. (2021): the same, less the distance to the mean of all images."""
    to_classes = _distances(fitting.train.features, fitting.labels)
    to_all = _distances(fitting.train.features, torch.zeros_like(fitting.labels))
    return lambda seen: -(to_classes(seen.features) - to_all(seen.features)).amin(1)


def _distances(train: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Return squared Mahalanobis distances, float64 ``[N, C]``, to the means of C classes.

    Directions without variance in ``train`` are left out, as by a pseudo-inverse.
    """
    features = _flat(train).double()
    member, size = labels.unique(return_inverse=True, return_counts=True)[1:]
    means = features.new_zeros(len(size), features.shape[1]).index_add_(0, member, features)
    means /= size[:, None]
    variance, directions = _axes(features - means[member])
    whiten = directions * variance.rsqrt()

    def squares(others: Tensor) -> Tensor:
        distances: Tensor = torch.cdist(_flat(others).double() @ whiten, means @ whiten)
        return distances.square()

    return squares


def _axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return variances about 0 ``[R]`` and directions ``[F, R]`` of features, float64 ``[N, F]``.

    Without those along which they, as float32 that they come from, are 0 but for rounding.
    """
    variance, directions = torch.linalg.eigh(features.T @ features / len(features))
    real = variance > len(variance) * torch.finfo(torch.float32).eps ** 2 * variance.max()
    return variance[real], directions[:, real]


def check_neighbours(name: str, config: DetectorConfig, images: int) -> None:
    """Refuse more neighbours than there are training ``images``, if the detector ``name`` has any.

    Raises:
        UserError: naming the parameter.
    """
    neighbours = getattr(config, name) if name in ("knn", "nnguide") else 0
    if neighbours > images:
        raise UserError(
            f"evaluation.detector.{name} must be at most the {images} training images, but is "
            f"{neighbours}"
        )


def check_dimensions(dimensions: int, spanned: int) -> None:
    """Refuse a principal space of ViM that is the whole space of ``spanned`` dimensions.

    Raises:
        UserError: naming the parameter.
    """
    if dimensions >= spanned:
        raise UserError(
            f"evaluation.detector.vim_dimensions must be below the {spanned} dimensions that the "
            f"features of the training images have, but is {dimensions}"
        )


DETECTORS: dict[str, Callable[[DetectorContext], Detector]] = {
    "own": _own,
    "msp": _msp,
    "odin": _odin,
    "energy": _energy,
    "max_logit": _of_logits("MaxLogit"),
    "entropy": _of_logits("Entropy"),
    "gen": _of_logits("GEN"),
    "knn": _knn,
    "nnguide": _nnguide,
    "vim": _vim,
    "react": _react,
    "mahalanobis": _mahalanobis,
    "relative_mahalanobis": _relative_mahalanobis,
}
# those that are of several labels, too
SEVERAL = ("energy", "max_logit", "msp", "knn", "react", "own")
FITTED = ("knn", "nnguide", "vim", "react", "mahalanobis", "relative_mahalanobis")
