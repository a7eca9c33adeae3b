"""Augmentation, views and mixtures of images, in batches on their device."""
