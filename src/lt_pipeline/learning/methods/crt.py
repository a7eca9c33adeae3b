"""cRT (Kang et al., ICLR 2020): a new classifier, trained on class-balanced batches."""

from __future__ import annotations

from lt_pipeline.learning.methods.families.decoupled import (
    ClassifierConfig,
    Decoupled,
    DecoupledOptions,
)


class CrtOptions(DecoupledOptions):
    """The classifier begins anew."""

    classifier: ClassifierConfig = ClassifierConfig(restart=True)


class ClassifierRetraining(Decoupled):
    """Instance-balanced training of all, then class-balanced training of a new classifier."""

    Options = CrtOptions
