"""Labelled images to a trained, tracked, reproducible classifier; the stages in `stages/` drive it."""
