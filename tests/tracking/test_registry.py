"""Tests of the registry: which version of a registered model is the champion."""

from pathlib import Path

import pytest
from helpers import new_spec, save_model

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_champion_is_the_most_accurate_model_on_the_same_test_images(tmp_path: Path) -> None:
    from mlflow import MlflowClient  # noqa: TID251

    from imageclf.tracking.recorder.registry import ALIAS, register
    from imageclf.tracking.recorder.served_model import log_served_model

    save_model(tmp_path / "model", new_spec())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.create_run(client.create_experiment("tests", (tmp_path / "artifacts").as_uri()))
    models = [log_served_model(client, run.info.run_id, tmp_path / "model", name="mlp", epoch=1) for _ in range(4)]

    def registered(index: int, accuracy: float, data: str) -> tuple[str, str]:
        sentence = register(client, "pets", models[index], accuracy=accuracy, test_sha256=data)
        return sentence, client.get_model_version_by_alias("pets", ALIAS).version

    assert registered(0, 0.9, "a") == ("version 1 of pets is the champion", 1)
    sentence, champion = registered(1, 0.9, "a")
    assert (sentence.endswith("version 1, which is at least as accurate"), champion) == (True, 1)
    sentence, champion = registered(2, 0.99, "b")
    assert (sentence.endswith("version 1, which has other test data"), champion) == (True, 1)
    assert registered(3, 0.91, "a") == ("version 4 of pets is the champion", 4)
    assert registered(3, 0.91, "a") == ("version 4 of pets stays the champion", 4)
    assert len(client.search_model_versions("name = 'pets'")) == 4
    assert client.get_logged_model(models[0]).status.name == "READY"


def test_a_failing_registry_is_an_error(tmp_path: Path) -> None:
    from mlflow import MlflowClient  # noqa: TID251

    from imageclf.tracking.recorder.registry import register

    with pytest.raises(Exception, match="not found"):
        register(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), "pets", "m-0", accuracy=0.9, test_sha256="a")
