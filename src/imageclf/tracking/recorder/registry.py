"""MLflow's registry of models: versions of a registered model, of which the best one is the `champion`."""

from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

ALIAS = "champion"
ACCURACY, TEST_DATA, MODEL = "test_accuracy", "test_sha256", "model_id"
"""Tags of a version: the accuracy on the test split, the SHA-256 of its images and targets, and the model's id."""


def register(client: MlflowClient, name: str, model_id: str, *, accuracy: float, test_sha256: str) -> str:
    """Register a model as a version of `name`, and return a sentence about the alias `champion`.

    The alias moves to the new version only if it is more accurate than the champion on the same test data.
    """
    with suppress(MlflowException):  # it exists; if the registry fails, the next call raises the error
        client.create_registered_model(name)
    logged = client.get_logged_model(model_id)
    tags = {ACCURACY: repr(accuracy), TEST_DATA: test_sha256, MODEL: model_id}
    known = [each for each in client.search_model_versions(f"name = '{name}'") if each.tags.get(MODEL) == model_id]
    new = (
        known[0]
        if known
        else client.create_model_version(
            name, logged.artifact_location, run_id=logged.source_run_id, tags=tags, model_id=model_id
        )
    )
    champion = _champion(client, name)
    if champion is None or _is_better(tags, champion.tags):
        client.set_registered_model_alias(name, ALIAS, new.version)
        return f"version {new.version} of {name} is the {ALIAS}"
    if champion.version == new.version:
        return f"version {new.version} of {name} stays the {ALIAS}"
    why = "has other test data" if champion.tags.get(TEST_DATA) != test_sha256 else "is at least as accurate"
    return (
        f"registered as version {new.version} of {name}; the {ALIAS} is still version {champion.version}, which {why}"
    )


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code not in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}:
            raise
        return None  # no version has the alias


def _is_better(new: dict[str, str], old: dict[str, str]) -> bool:
    return new[TEST_DATA] == old.get(TEST_DATA) and float(new[ACCURACY]) > float(old[ACCURACY])
