"""From the parameters in conf/ to one checked description of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from lt_pipeline.learning import methods
from lt_pipeline.learning.data import ood
from lt_pipeline.learning.data.ood import OOD_SETS
from lt_pipeline.learning.data.ood_files import SetRequest
from lt_pipeline.learning.data.prepare import DataCard, DataConfig, expected, facts
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.loader import steps_of
from lt_pipeline.learning.engine.parallel import RANDOM
from lt_pipeline.learning.engine.protocol import objective_of
from lt_pipeline.learning.engine.trainer import stage_config
from lt_pipeline.learning.evaluation.detectors import (
    DetectorConfig,
    check_dimensions,
    check_name,
    check_neighbours,
    of_several,
)
from lt_pipeline.learning.experiments.renamed import renamed_config
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.backbones import check_weights
from lt_pipeline.learning.models.network import ModelConfig, on_features
from lt_pipeline.learning.models.weights import NONE
from lt_pipeline.learning.schema import (
    Config,
    UserError,
    block_of,
    check_distinct,
    named,
    one_line_errors,
    places,
    unknown,
)


class LandscapeConfig(Config):
    """How the loss landscape is measured, by class (MORE, table 6).

    The Hessian is multiplied with at most ``steps`` + 3 ``probes`` vectors a class.

    Attributes:
        images: training images of each class, or all that it has; 0 is no landscape.
        seed: of which they are, and of the random vectors.
        steps: of Lanczos' method, at most, for the ends of the spectrum.
        tolerance: of the two eigenvalues, at which it ends before.
        probes: a third of the products that the trace is estimated by.
        batch: images whose graph is in memory at a time.
    """

    images: NonNegativeInt = 0
    seed: NonNegativeInt = 0
    steps: PositiveInt = 60
    tolerance: float = Field(default=0.01, ge=0, lt=1)
    probes: PositiveInt = 10
    batch: PositiveInt = 64


class EvaluationConfig(Config):
    """How a trained method is judged on the test set.

    Attributes:
        calibration_bins: bins of the expected calibration error.
        recall_floor: what a recall of zero counts as in the harmonic and geometric mean.
        ood: out-of-distribution sets to tell from the test set, one or several by name; ``true`` is
            all that are known (docs/ood.md), of which those that are not there are left out with a
            line; a set that is named must be there.
        ood_limit: the most images taken of a set.
        ood_made: the most of one that is made, as noise is: ODIN costs four passes an image, and
            30,000 images of noise more than a short training.
        detectors: what tells them apart, by name: ``msp``, ``odin``, ``energy``, ``max_logit``,
            ``entropy``, ``gen``, ``knn``, ``nnguide``, ``vim``, ``react``, ``mahalanobis``,
            ``relative_mahalanobis``, or the method's ``own``. The first is what tables show.
        detector: what they can be told.
        embedding: test images a group, and as many of every OOD set, in a t-SNE picture; 0 is no
            picture.
        landscape: the Hessian of each class's loss.
    """

    calibration_bins: int = Field(default=15, ge=1, le=10_000)
    recall_floor: float = Field(default=1e-3, gt=0, lt=1)
    ood: bool | tuple[str, ...] = ("gaussian_noise", "uniform_noise", "permuted_pixels")
    ood_limit: PositiveInt = 10_000
    ood_made: PositiveInt = 2_000
    detectors: tuple[str, ...] = ("odin", "msp", "energy")
    detector: DetectorConfig = DetectorConfig()
    embedding: NonNegativeInt = 0
    landscape: LandscapeConfig = LandscapeConfig()

    @property
    def ood_names(self) -> tuple[str, ...]:
        """Return the sets to look at."""
        if isinstance(self.ood, bool):
            return tuple(OOD_SETS) if self.ood else ()
        return self.ood

    def check_files(self, data: DataConfig, raw_folder: Path) -> None:
        """Refuse sets that are named and not in ``raw_folder``, and damaged files.

        Raises:
            UserError: in one line, naming the set or file and what to put where.
        """
        trained = data.auxiliary.name if data.auxiliary else ""
        names = [n for n in self.ood_names if n != data.source and not ood.same_images(n, trained)]
        wanted = SetRequest(raw_folder, facts(data).shape, self.ood_limit, data.seed)
        with named("evaluation.ood: "):
            ood.check_files(names, wanted, optional=self.ood is True)

    @field_validator("ood")
    @classmethod
    def _known(cls, names: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        for name in names if isinstance(names, tuple) else ():
            ood.check_name(name)
        check_distinct(names if isinstance(names, tuple) else ())
        return names

    @field_validator("detectors")
    @classmethod
    def _known_detectors(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise UserError("at least one detector is needed; ood=false leaves all out")
        for name in names:
            check_name(name)
        check_distinct(names)
        return names


def _known_method(name: str) -> str:
    methods.get(name)
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]


class MethodBlock(Config):
    """A method's own block: its options, and what it changes of the shared model and training."""

    options: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


# blocks whose name says which parameters they have
NAMED = ("criterion", "margin")


def updated(base: Mapping[str, Any] | None, over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over`` in place of its own, at every depth.

    A criterion or margin of another name begins anew: it has other parameters.
    """
    result = dict(base or {})
    for name, value in over.items():
        old = result.get(name)
        if not (isinstance(old, Mapping) and isinstance(value, Mapping)):
            result[name] = value
        elif name in NAMED and value.get("name", old.get("name")) != old.get("name"):
            result[name] = dict(value)
        else:
            result[name] = updated(old, value)
    return result


# What every experiment reads beside its own block, in the order of the node that configures it.
SINGLE = ("seed", "seeds", "together", "device", "method")
SHARED = ("seed", "device", "model", "training", "evaluation")


class ExperimentConfig(Config):
    """Everything that decides what a method's run gives, apart from the data."""

    method: MethodName
    seed: NonNegativeInt = 0
    device: str = "auto"
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    options: SerializeAsAny[MethodOptions] = MethodOptions()

    @model_validator(mode="wrap")
    @classmethod
    def _as_it_looks(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # a file of before a parameter was renamed is read like one of now
        known = renamed_config(values) if isinstance(values, dict) else values
        return super()._as_it_looks(known, handler)  # type: ignore[operator, no-any-return]

    @property
    def title(self) -> str:
        """Return the method's name, with its variant where it has some."""
        return " ".join([self.method, *self.options.variant_name])

    @field_validator("options", mode="before")
    @classmethod
    def _typed(cls, options: Any, info: ValidationInfo) -> Any:
        kind = methods.get(info.data["method"]).Options if "method" in info.data else MethodOptions
        if isinstance(options, kind):
            return options
        return kind.model_validate({} if options == MethodOptions() else options)

    @model_validator(mode="after")
    def _sensible(self) -> ExperimentConfig:
        with named(f"{self.method}.options."):
            self.options.check_head(self.model.head == "cosine")
        return self

    def check_data(self, data: DataConfig) -> None:
        """Refuse data that lack what the method needs.

        Raises:
            UserError: in one line, naming the parameters.
        """
        card = expected(data)
        if card.longtail.several:
            self._check_several(data)
        if self.options.wants_auxiliary and data.auxiliary is None:
            raise UserError(
                f"{self.method} trains on images of no class, but data.auxiliary is null: set it, "
                f"as in data.auxiliary.name=gaussian_noise"
            )
        if self.options.wants_validation and not data.holds_out:
            raise UserError(
                f"{self.method}.options: difficulty is measured on the hold-out, but "
                f"data.validation is 0: set it above 0, or difficulty to training"
            )
        self._check_fit(card, facts(data).shape)

    def _check_several(self, data: DataConfig) -> None:
        """Refuse images of several labels where the method is not for them."""
        why = methods.get(self.method).why_one_label(self.options)
        if why:
            raise UserError(
                f"{self.method} takes images of one label, and those of {data.title} have several: "
                f"{why}. bce takes them, and more with more.options.criterion.name=bce "
                f"(docs/multilabel.md)"
            )

    def _check_fit(self, card: DataCard, shape: tuple[int, int, int]) -> None:
        """Refuse sizes that do not fit the data, by building what will be trained."""
        training, images = self.training, sum(card.longtail.class_counts)
        self._check_features()
        check_weights(self.model.backbone, card.channels, self.model.weights)
        with named("training.augment."):
            training.augment.check(shape)
        with named(f"{self.method}.options."):
            self.options.check_images(shape)
        method = self._untrained(card)
        for stage in method.stages(self.options):
            views = stage.trains and objective_of(method, stage).views
            if views and training.on_features:
                raise UserError(
                    f"{self.method} contrasts views of images, and training.features=cached has "
                    f"none: set it to none"
                )
            if views:
                with named("training.views: "):
                    training.views.check(shape)
            if not stage.trains:
                continue
            own = stage_config(training, stage)
            with_frozen(method, stage, own)
            if not stage.subset:
                steps_of(stage, images, own.batch_size)
        detectors = self.evaluation.detectors if self.evaluation.ood_names else ()
        for name in of_several(detectors) if detectors and card.longtail.several else detectors:
            check_neighbours(name, self.evaluation.detector, images)
            if name == "vim":
                features = method.net.prototypes.numel() // card.longtail.classes
                check_dimensions(self.evaluation.detector.vim_dimensions or 0, features)

    def _check_features(self) -> None:
        """Refuse what the features of a frozen backbone leave nothing to do for."""
        if not self.training.on_features:
            return
        if self.model.weights == NONE:
            raise UserError(
                "training.features=cached freezes the backbone, and model.weights is none: set "
                "weights that it starts from, or training.features to none"
            )
        if self.model.adapter.name != "none":
            raise UserError(
                f"training.features=cached has no backbone for {self.model.adapter.name} to learn "
                f"in: set model.adapter.name to none, or training.features to none"
            )
        if self.options.mixes and self.options.mixes.cutmix:
            raise UserError(
                f"{self.method}.options: CutMix pastes pixels, and training.features=cached has "
                f"none: set cutmix to false, or training.features to none"
            )

    def _untrained(self, card: DataCard) -> Method:
        """Return the method as it begins, without what would be downloaded."""
        plain = self.model.model_copy(update={"weights": NONE})
        if self.training.on_features:
            plain = on_features(plain)
        with RANDOM, named(f"{self.method}: "), torch.random.fork_rng(devices=[]):
            return methods.get(self.method)(self.options, plain, card)

    def check_device(self) -> None:
        """Refuse a device that is not there, or that cannot take the steps that are asked for."""
        device = choose_device(self.device)
        if self.training.step == "captured" and device.type != "cuda":
            raise UserError(
                f"training.step=captured is a CUDA graph, but the device is {device.type}: set it "
                f"to auto"
            )

    def evaluated_as(self, evaluation: Mapping[str, Any], device: str) -> ExperimentConfig:
        """Return the same training, judged as ``evaluation`` says, and computed on ``device``.

        Raises:
            UserError: in one line, naming every parameter that is wrong and what would be right.
        """
        trained = self.model_dump(mode="json")
        with one_line_errors(meant=partial(place_of, method=self.method)):
            return type(self).model_validate(
                {**trained, "evaluation": evaluation, "device": device}
            )

    @classmethod
    def resolve(cls, method: str, parameters: Mapping[str, Any]) -> ExperimentConfig:
        """Return the experiment of ``method``: its own block over the shared parameters.

        Raises:
            UserError: in one line, naming every parameter that is wrong and what would be right.
        """
        block, options = method_options(method, parameters)
        with one_line_errors(meant=partial(place_of, method=method)):
            shared = {name: parameters[name] for name in SHARED if name in parameters}
            for part in ("model", "training"):
                shared[part] = updated(block_of(parameters, part), getattr(block, part))
            return cls(method=method, options=options, **shared)


def method_options(
    method: str, parameters: Mapping[str, Any], above: tuple[str, ...] = ()
) -> tuple[MethodBlock, MethodOptions]:
    """Return the checked block of ``method`` and its options.

    A method on top of another one takes over that one's block, its own going before. ``above`` are
    the methods that stand on this one.

    Raises:
        UserError: in one line, naming every parameter that is wrong and what would be right.
    """
    meant = partial(place_of, method=method)
    with one_line_errors(method, meant):
        block = MethodBlock.model_validate(block_of(parameters, method))
    kind = methods.get(method).Options
    with one_line_errors(f"{method}.options", meant):
        if "pretrain" in kind.model_fields:
            block = _on_top(block, method, parameters, above)
        return block, kind.model_validate(block.options)


def _on_top(
    block: MethodBlock, method: str, parameters: Mapping[str, Any], above: tuple[str, ...]
) -> MethodBlock:
    """Return ``block`` with what it leaves to the method that is trained first."""
    usual = methods.get(method).Options.model_fields["pretrain"].default
    first, chain = block.options.get("pretrain", usual), (*above, method)
    if first in chain:
        raise UserError(f"{method}.options.pretrain: {first} cannot be trained on top of itself")
    with named(f"{method}.options.pretrain: "):
        methods.get(first)
    given = block_of(block.options, "pretrain_options", f"{method}.options.")
    inner = updated(block_of(parameters, first), {"options": given})
    method_options(first, parameters, chain)  # what is wrong there is named as there
    try:
        below, _ = method_options(first, {**parameters, first: inner}, chain)
    except UserError as error:
        where = f"{method}.options.pretrain_options"
        raise UserError(str(error).replace(f"{first}.options", where)) from None
    own = {**block.options, "pretrain": first, "pretrain_options": below.options}
    return MethodBlock(
        options=own,
        model=updated(below.model, block.model),
        training=updated(below.training, block.training),
    )


def data_config(parameters: Mapping[str, Any]) -> DataConfig:
    """Return the checked block ``data``.

    Raises:
        UserError: in one line, naming every parameter that is wrong and what would be right.
    """
    with one_line_errors("data", place_of):
        return DataConfig.model_validate(block_of(parameters, "data"))


def place_of(name: str, method: str | None = None) -> str | None:
    """Return the parameter of a run of ``method`` that goes by ``name``, or is a paper's symbol.

    It is what someone meant who gave it elsewhere; None is where there is none.
    """
    blocks: dict[str, Config] = {"data": DataConfig()}
    if method:
        blocks[f"{method}.options"] = methods.get(method).Options()
    blocks |= {"training": TrainingConfig(), "model": ModelConfig()}
    blocks |= {"evaluation": EvaluationConfig()}
    matches = (
        place
        for path, block in blocks.items()
        for known, place in places(block, f"{path}.")
        if known == name
    )
    return next(matches, None)


def search_of(method: str) -> str:
    """Return the name of the block that says what of ``method`` a sweep tries."""
    return f"{method}_search"


def check_parameters(parameters: Mapping[str, Any], method: str | None = None) -> None:
    """Refuse names of parameters that mean nothing, and data that cannot be.

    ``method`` is the one that runs, if one does: names of its parameters are pointed to.

    Raises:
        UserError: in one line, naming every parameter that is wrong and what would be right.
    """
    known = methods.available()
    spaces = (search_of(name) for name in known)
    own = ("data", "studies", "compare", "evaluate", "tune", "tracking", "serve")
    valid = (*SINGLE, *own, *SHARED, *known, *spaces)
    for name in parameters:
        if name not in valid:
            place = place_of(str(name), method)
            raise UserError(unknown("parameter or method", name, valid, place))
        if name not in SINGLE:
            block_of(parameters, name)
    expected(data_config(parameters))
    for name in known:
        method_options(name, parameters)
