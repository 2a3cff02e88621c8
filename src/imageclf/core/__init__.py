"""Errors, files, paths and processes: shared by all stages."""
