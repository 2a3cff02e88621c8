"""Losses, optimizers, gradients, the training loop, scores, and resuming; `loading` makes the batches."""
