"""Sources, long-tail profiles, samplers, batched augmentation, batches."""
