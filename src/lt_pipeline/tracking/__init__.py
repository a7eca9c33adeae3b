"""MLflow: the client, runs, the registry, and where results come from."""
