"""Prepare splits from raw files: decode, transform, split, measure, write."""
