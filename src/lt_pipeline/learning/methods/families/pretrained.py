"""Methods that begin where another one ends: that one is trained first, as its own pipeline would.

``pretrain`` names it. Its stages are this method's first ones; afterwards it is folded, and what
is left is a network, ``net``, with a backbone and a head to go on with.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import SerializeAsAny, model_validator
from torch import Tensor

from lt_pipeline.learning import methods
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.network import Network
from lt_pipeline.learning.schema import UserError, one_line_errors
from lt_pipeline.learning.transforms.mix import MixConfig

# the first stage of the method that is trained first; the names of its others begin like this
FIRST = "pretrain"
SOURCE = "source"


class PretrainedOptions(MethodOptions):
    """What methods on top of another one can be told.

    Attributes:
        pretrain: the method that is trained first.
        pretrain_options: that method's options; they are its own block's in conf/ unless given.
    """

    pretrain: str = "ce"
    pretrain_options: SerializeAsAny[MethodOptions] = MethodOptions()

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("pretrain", cls.model_fields["pretrain"].default)
        given = values.get("pretrain_options", {})
        try:
            kind = methods.get(name)
        except UserError as error:
            raise UserError(f"pretrain: {error}") from None
        if kind.post_process is not Method.post_process:
            raise UserError(
                f"pretrain: {name} replaces its classifier after training, and a second stage "
                f"would undo that: choose another method"
            )
        if not isinstance(given, MethodOptions):
            with one_line_errors("pretrain_options"):
                given = kind.Options.model_validate(given)
        return {**values, "pretrain": name, "pretrain_options": given}

    @property
    def handles_imbalance(self) -> bool:
        """Return true: it is what a second stage is for."""
        return True

    @property
    def built_on(self) -> tuple[str, ...]:
        """Return the methods that are trained first, from the outer to the inner one."""
        return (self.pretrain, *self.pretrain_options.built_on)

    @property
    def wants_validation(self) -> bool:
        """Return whether training needs a hold-out, in any stage."""
        return super().wants_validation or self.pretrain_options.wants_validation

    @property
    def wants_auxiliary(self) -> bool:
        """Return whether the method that is trained first needs images of no class."""
        return self.pretrain_options.wants_auxiliary

    @property
    def mixes(self) -> MixConfig | None:
        """Return how the method that is trained first mixes images."""
        return self.pretrain_options.mixes

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return what it stands on, where that is not the usual."""
        usual = type(self).model_fields["pretrain"].default
        return () if self.pretrain == usual else (f"on {self.pretrain}",)

    @property
    def factors(self) -> tuple[str, ...]:
        """Return the parameters that scale logits by class in the methods below."""
        return tuple(f"source.{name}" for name in self.pretrain_options.factors)

    def check_head(self, cosine: bool) -> None:
        """Refuse a head that does not suit one of the stages.

        Raises:
            UserError: saying what would.
        """
        super().check_head(cosine)
        try:
            self.pretrain_options.check_head(cosine)
        except UserError as error:
            raise UserError(f"pretrain_options.{error}") from None

    @model_validator(mode="after")
    def _no_views(self) -> Self:
        if self.criterion.kind.views:
            raise UserError(
                f"criterion {self.criterion.name!r} contrasts views of images, and the second "
                f"stage has none: choose one that reads logits only"
            )
        return self


def stages_below(options: PretrainedOptions) -> tuple[Stage, ...]:
    """Return the stages of the method that is trained first, as they are on top of it."""
    first, *rest = methods.get(options.pretrain).stages(options.pretrain_options)

    def renamed(name: str) -> str:
        return FIRST if name == first.name else f"{FIRST}_{name}"

    return tuple(
        stage.below(SOURCE, renamed, options.pretrain, options.pretrain_options)
        for stage in (first, *rest)
    )


class Pretrained(Method):
    """A method on top of ``options.pretrain``, which is ``source``."""

    Options = PretrainedOptions
    options: PretrainedOptions
    # what its own stages stand on
    END: ClassVar[Stage] = Stage("finish", folded=(SOURCE,))

    @classmethod
    def why_one_label(cls, options: Any) -> str:
        """Return why images of several labels are not for it, or for what is trained first."""
        below = methods.get(options.pretrain).why_one_label(options.pretrain_options)
        first = below and f"{options.pretrain}, which is trained first: {below}"
        return super().why_one_label(options) or first

    def compose(self) -> None:
        """Make the method that is trained first; it starts from the weights it has by itself."""
        below = methods.get(self.options.pretrain)
        self.source = below(self.options.pretrain_options, self.model, self.card)
        self.source.inner = True

    @property
    def net(self) -> Network:  # type: ignore[override]
        """Return the network that all stages train."""
        return self.source.net

    @classmethod
    def stages(cls, options: Any) -> tuple[Stage, ...]:
        """Return the stages of the method that is trained first."""
        return stages_below(options)

    def features(self, images: Tensor) -> Tensor:
        """Return what the classifier sees of every image, ``[B, F]``."""
        return self.source.features(images)

    def class_prototypes(self) -> Tensor:
        """Return the classifier's weights, ``[C, F]``."""
        return self.source.class_prototypes()

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of what ``net.features`` gives, ``[B, ...]``."""
        return self.source.classify(features)
