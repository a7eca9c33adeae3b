"""What is measured of a trained method."""
