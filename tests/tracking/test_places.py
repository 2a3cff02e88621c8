"""Tests of addresses of stores and artifacts: moved folders, special characters, and no passwords in messages."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from imageclf.tracking import places
from imageclf.tracking.places import without_password

ODD = "it's 100% a#b?c d%20e"
"""Name of a folder with the special characters of addresses, filters and shells."""


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///runs.db", "runs.db"),
        ("sqlite:////data/a b/runs.db", "/data/a b/runs.db"),
        ("sqlite+pysqlite:///runs.db?timeout=30", "runs.db"),
    ],
)
def test_the_file_of_a_database(uri: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.database(uri) == tmp_path / path


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "./mlruns", "http://host", "postgresql://u:p@h/d"])
def test_other_stores_have_no_file(uri: str) -> None:
    assert places.database(uri) is None
    assert places.artifact_location(uri) is None


def make_database(folder: Path, home: Path) -> None:
    """Create the address columns of MLflow's database for a project that was in `home`; one run's artifacts exist."""
    (folder / "mlartifacts/here").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as opened, opened:
        for table in {table for table, _ in places.LOCATIONS}:
            columns = [column for each, column in places.LOCATIONS if each == table]
            opened.execute(f"create table {table} ({', '.join(columns)})")
        opened.execute("insert into experiments values (?), (?)", (f"{home.as_uri()}/mlartifacts", f"{home}/mlruns/0"))
        for name in ("here", "gone"):
            opened.execute("insert into runs values (?)", (f"{home.as_uri()}/mlartifacts/{name}",))
        opened.execute("insert into logged_models values ('s3://bucket/model'), (null)")
        opened.execute("insert into model_versions values (?, ?)", ("models:/m-1", f"{home}/mlartifacts/here"))


def addresses(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as opened:
        tables = [opened.execute(f"select {column} from {table}").fetchall() for table, column in places.LOCATIONS]  # noqa: S608
    return [address for rows in tables for (address,) in rows]


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_moved_database_gets_its_new_addresses(copied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / f"old {ODD}", tmp_path / f"new {ODD}"
    make_database(new, old)
    if copied:
        make_database(old, old)
    monkeypatch.chdir(new)
    places.update_locations("sqlite:///mlflow.db", f"{old.as_uri()}/mlartifacts")
    assert addresses(new) == [
        f"{new.as_uri()}/mlartifacts",
        f"{new}/mlruns/0",
        f"{new.as_uri()}/mlartifacts/here",
        f"{old.as_uri()}/mlartifacts/gone",
        "s3://bucket/model",
        None,
        "models:/m-1",
        f"{new}/mlartifacts/here",
    ]


def test_a_folder_that_the_user_chose_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, project = tmp_path / "chosen", tmp_path / "project"
    (chosen / "mlartifacts").mkdir(parents=True)
    make_database(project, chosen)
    monkeypatch.chdir(project)
    before = addresses(project)
    for location in (f"{chosen.as_uri()}/mlartifacts", f"{chosen}/elsewhere", "s3://bucket/mlartifacts"):
        places.update_locations("sqlite:///mlflow.db", location)
    assert addresses(project) == before


PAGE = "#/experiments/7/runs?workflowType=machine_learning"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (
            "sqlite:///mlflow.db",
            f"`uv run mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5001`, then http://127.0.0.1:5001/{PAGE}",
        ),
        (
            "sqlite:////it's here/x.db",
            (
                "`uv run mlflow ui --backend-store-uri 'sqlite:////it'\"'\"'s here/x.db' --port 5001`, "
                f"then http://127.0.0.1:5001/{PAGE}"
            ),
        ),
        (
            "postgresql://me:secret@host/runs",
            (
                '`uv run mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI" --port 5001`, '
                f"then http://127.0.0.1:5001/{PAGE}"
            ),
        ),
        ("https://me:sec/ret@host:8443/prefix/", f"https://host:8443/prefix/{PAGE}"),
    ],
)
def test_how_to_view_the_runs(uri: str, shown: str) -> None:
    assert places.how_to_view(uri, PAGE) == shown


def test_the_error_for_an_old_database_has_the_upgrade_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my project").mkdir()
    monkeypatch.chdir(tmp_path / "my project")
    error = RuntimeError("Detected out-of-date database schema ... then run 'mlflow db upgrade <database_uri>'")
    command = f"`uv run mlflow db upgrade 'sqlite:///{tmp_path}/my project/mlflow.db'`"
    assert command in places.explain(error, "sqlite:///mlflow.db")


def test_the_error_for_a_folder_as_store_has_the_remedy() -> None:
    error = RuntimeError("The filesystem tracking backend ... MLFLOW_ALLOW_FILE_STORE=true")
    assert "MLFLOW_TRACKING_URI=sqlite:///runs.db" in places.explain(error, "./mlruns")


def test_the_error_for_an_address_without_scheme_names_it() -> None:
    error = RuntimeError("Model registry functionality is unavailable; got unsupported URI 'localhost:5000' for ...")
    assert "localhost:5000; a server's starts with http://" in places.explain(error, "localhost:5000")


def test_an_error_is_one_line_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    error = RuntimeError("  refused http://me:a@b:c@host/x for hush. Response body: '<html>\n...\n'\nTraceback")
    assert places.explain(error, "http://me:a@b:c@host") == "refused http://host/x for ***."
    assert places.explain(RuntimeError(), "http://host") == "RuntimeError"
    advice = RuntimeError(
        "(raised as a result of Query-invoked autoflush; ...)\n(sqlite3.OperationalError) disk is full"
    )
    assert places.explain(advice, "sqlite:///mlflow.db") == "(sqlite3.OperationalError) disk is full"
    assert len(places.explain(RuntimeError("x" * 1000), "http://host")) == 300


@pytest.mark.parametrize("text", ["http://host:5000/a/b", "s3://bucket/x", "mail me@host"])
def test_a_text_without_password_does_not_change(text: str) -> None:
    assert without_password(text) == text
