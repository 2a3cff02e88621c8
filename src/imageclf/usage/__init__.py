"""The commands that use a trained model: predict, export, demo."""
