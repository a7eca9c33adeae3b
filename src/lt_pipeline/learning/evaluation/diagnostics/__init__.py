"""What the papers look at beside accuracy."""
