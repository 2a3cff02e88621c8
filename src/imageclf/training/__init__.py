"""Batches, augmentation, losses, optimizers, the training loop, scores, and resuming."""
