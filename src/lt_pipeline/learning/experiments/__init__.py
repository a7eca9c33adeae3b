"""What an experiment is, from its parameters."""
