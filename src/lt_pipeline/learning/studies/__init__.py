"""Several experiments: studies, their comparison, and what papers report."""
