"""Download a model that MLflow stores."""

import logging
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from imageclf.core.errors import UserError
from imageclf.tracking import places
from imageclf.tracking.recorder.store import EXPERIMENT, set_short_timeouts

if TYPE_CHECKING:
    from mlflow.entities import Run


def download(address: str, folder: Path) -> Path:
    """Download a model, such as `models:/name@champion` or `runs:/<id>`, to `folder`; return its folder.

    The store is that of the pipeline. Raises `UserError` if the store or the model does not exist.
    """
    uri = places.tracking_uri()
    database = places.database(uri)
    if database is not None and not database.exists():
        raise UserError(f"{address}: there is no MLflow database {database}; set MLFLOW_TRACKING_URI")
    set_short_timeouts()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    warnings.simplefilter("ignore")
    import mlflow
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    try:
        ours = mlflow.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        if ours is not None:
            places.update_locations(uri, ours.artifact_location)
        if run := re.fullmatch(r"runs:/(\w+)(?:/model)?/?", address):  # `model` was the name of all models once
            address = _model_of_run(mlflow.get_run(run[1]))
        return Path(download_artifacts(artifact_uri=address, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"{address}: {places.explain(error, uri)}") from None


def _model_of_run(run: "Run") -> str:
    """Return the address of the model of a run. Raises `UserError` if it has none."""
    if run.outputs is None or not run.outputs.model_outputs:
        raise UserError(f"runs:/{run.info.run_id} has no model")
    return f"models:/{run.outputs.model_outputs[-1].model_id}"
