"""Recipes, their experiments, and the comparison of experiments."""
