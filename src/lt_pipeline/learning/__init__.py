"""The science: usable as a library, it knows nothing of Kedro, MLflow, DVC, Optuna or Ray.

The names of ``__all__`` can be imported from here (docs/library.md). Each comes from its module
when it is asked for, so that importing this package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "data.images": ("ImageSet",),
    "data.distribution": ("CountGroups", "LongTail", "SplitGroups", "ThirdsGroups"),
    "data.prepare": ("DataCard", "DataConfig"),
    "data.samplers": (
        *("SamplerConfig", "class_aware", "class_balanced", "instance_balanced"),
        *("progressively_balanced", "reverse", "square_root"),
    ),
    "data.subsets": ("balanced_subset", "balanced_subsets"),
    "engine.predict": ("predict",),
    "evaluation.detectors": (
        "DETECTORS",
        "DetectorConfig",
        "OwnNetwork",
        "build_detectors",
        "extract_outputs",
    ),
    "evaluation.metrics.calibration": ("expected_calibration_error",),
    "evaluation.metrics.classification": ("class_table", "confusion_matrix", "report"),
    "evaluation.metrics.ood": ("ood_report",),
    "experiments.config": ("ExperimentConfig",),
    "experiments.experiment": ("Experiment", "load_finished"),
    "losses.contrastive": ("BalancedContrastiveConfig",),
    "losses.criteria": (
        *("BalancedSoftmaxConfig", "ClassBalancedConfig", "Criterion", "CrossEntropyConfig"),
        *("FocalConfig", "Head", "LogitAdjustmentConfig", "Outputs"),
    ),
    "losses.decoupled": ("GeometricMeanConfig", "LabelAwareSmoothingConfig"),
    "losses.difficulty": ("DifficultyBalancedConfig",),
    "losses.functional": (
        *("balanced_softmax", "class_balanced_weight", "cross_entropy", "focal"),
        *("logit_adjusted", "weighted_cross_entropy"),
    ),
    "losses.margins": (
        *("ArcFaceConfig", "CosFaceConfig", "DbmConfig", "LdamConfig", "Margin"),
        "SphereFaceConfig",
    ),
    "methods.more": ("discrepancy", "rebalancing_weight", "schedule_weight"),
    "models.batchnorm": ("frozen_batchnorm_statistics", "reestimate_batchnorm"),
    "models.heads": ("CosineHead",),
    "models.low_rank": ("add_low_rank", "fold_low_rank", "general_weights"),
    "models.merging": ("adaptive_weights", "average", "greedy_soup", "interpolate"),
    "models.network": ("Network", "Normalize"),
    "schema": ("MissingFileError", "UserError"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Return what ``name`` is in its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the names that are here, those not yet imported among them."""
    return sorted({*globals(), *__all__})
