"""Losses as pure functions, and criteria that bind them to a class distribution."""
