"""The path from an image file to class names and probabilities, and the model that MLflow serves."""
