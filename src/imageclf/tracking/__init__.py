"""Reports of a run: to MLflow and to the terminal."""
