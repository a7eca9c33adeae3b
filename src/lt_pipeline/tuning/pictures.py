"""The pictures of a study."""

from __future__ import annotations

from matplotlib.figure import Figure
from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import TrialState

from lt_pipeline.learning.figures import sweep as figures
from lt_pipeline.tuning.space import Range, Space
from lt_pipeline.tuning.study import best_trial, kept_trials, objective

# with fewer there is nothing to tell apart
FEWEST = 4


def study_figures(study: Study, space: Space, title: str) -> dict[str, Figure]:
    """Return the pictures that the trials are enough for, by file name."""
    trials = kept_trials(study)
    ended = [t for t in trials if t.state == TrialState.COMPLETE]
    stopped = [t.number for t in trials if t.state == TrialState.PRUNED]
    values = {t.number: t.value or 0.0 for t in ended}
    settings = {t.number: {path: t.params[path] for path in space.dimensions} for t in ended}
    curves = {t.number: t.intermediate_values for t in trials if t.intermediate_values}
    logs = [n for n, d in space.dimensions.items() if isinstance(d, Range) and d.log]
    metric = objective(study)
    plots = {
        "history": figures.history(values, stopped, title, metric),
        "slice": figures.slices(values, settings, logs, title, metric),
        "parallel_coordinates": figures.parallel(values, settings, logs, title, metric),
    }
    if curves:
        plots["epochs"] = figures.epochs(curves, best_trial(study).number, stopped, title, metric)
    if len(set(values.values())) >= FEWEST:
        plots["importance"] = figures.importance(get_param_importances(study), title)
    return {f"{name}.png": figure for name, figure in plots.items()}
