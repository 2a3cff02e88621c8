"""Content of MLflow's pages: descriptions of the experiments, the columns of the table of runs, and addresses."""

import json

KEY = "scores"
"""Name of the view, in the address."""
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
"""Tag of the experiment that holds the view."""

COLUMNS = ["test/accuracy", "selected/val/accuracy", "test/gap"]
PARAMETERS = ["dataset", "model", "lr", "epochs", "seed"]

VIEW = {
    "selectedColumns": [
        "attributes.`Created`",
        *(f"metrics.`{name}`" for name in COLUMNS),
        *(f"params.`{name}`" for name in PARAMETERS),
    ],
    "orderByKey": "metrics.`test/accuracy`",
    "orderByAsc": False,
}

TAGS = {
    "mlflow.note.content": (
        "Each run is one training of the pipeline: its parameters, its data, a value per epoch (`epoch/*`), the scores "
        "of the selected epoch (`selected/*`) and of the test split (`test/*`), plots and the model. A run has the "
        "name of its DVC experiment: `uv run dvc exp apply NAME` brings back its files."
    ),
    VIEW_TAG: json.dumps(VIEW),
}
"""Tags of the MLflow experiment with the trainings."""

COMPARISON_TAGS = {
    "mlflow.note.content": "Each run is one comparison of DVC experiments: its page, its numbers and its plot."
}


def table_page(experiment_id: str) -> str:
    """Return the address of the table of runs with our columns, the best test accuracy first."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={KEY}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the address of a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
