"""The science: usable as a library, it knows nothing of Kedro, MLflow, DVC, Optuna or Ray."""
