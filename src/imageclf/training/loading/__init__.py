"""Batches on the device, made from stored images: reading, shuffling and augmentation."""
