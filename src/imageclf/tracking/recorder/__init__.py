"""The process that writes to MLflow: `python -m imageclf.tracking.recorder`. It alone imports mlflow."""
