"""What methods can be told."""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.mix import MixConfig

# margins that are the same for every class
EVEN_MARGINS = ("sphereface", "cosface", "arcface")


class MethodOptions(Config):
    """What a method can be told; every method trains on some criterion."""

    criterion: CriterionConfig = CrossEntropyConfig()

    @property
    def wants_validation(self) -> bool:
        """Return whether training needs a hold-out."""
        return self.criterion.wants_validation

    def check_head(self, cosine: bool) -> None:
        """Refuse a head that does not suit.

        Raises:
            UserError: saying what would.
        """
        try:
            self.criterion.check_head(cosine)
        except UserError as error:
            raise UserError(f"criterion: {error}") from None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images of ``(channels, height, width)`` that an option does not suit.

        Raises:
            UserError: naming the option.
        """

    @property
    def wants_auxiliary(self) -> bool:
        """Return whether training needs images of no class."""
        return False

    @property
    def handles_imbalance(self) -> bool:
        """Return whether a method of these options levels the classes by itself."""
        margin = self.criterion.margin
        plain = self.criterion.name == "cross_entropy"
        return not plain or (margin is not None and margin.name not in EVEN_MARGINS)

    @property
    def mixes(self) -> MixConfig | None:
        """Return how training mixes images, None where it does not."""
        return None

    @property
    def built_on(self) -> tuple[str, ...]:
        """Return the methods that this one trains first, from the outer to the inner one."""
        return ()

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return the name of the variant these options choose, for titles; mostly there is none."""
        return ()

    @property
    def factors(self) -> tuple[str, ...]:
        """Return the names in the method of the parameters that scale its logits by class."""
        return ()
