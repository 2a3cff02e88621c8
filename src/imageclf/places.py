"""Where MLflow's store and its artifacts are, as addresses: relative ones, moved ones, and ones to show to a person.

The recorder works in the repository's folder, so a relative address is relative to it, as MLflow has it.
"""

import os
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

DEFAULT = "sqlite:///mlflow.db"
ARTIFACTS = "mlartifacts"
PORT = 5001
"""For `mlflow ui`; macOS itself listens on 5000, MLflow's default."""
LOCATIONS = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]
"""The columns of MLflow's database that hold the addresses of artifacts."""


def tracking_uri() -> str:
    """The address of the store: `MLFLOW_TRACKING_URI`, or a database in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT


def database(uri: str) -> Path | None:
    """The file of an SQLite store, absolute; None for any other store."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]).absolute() if found and found[1] != ":memory:" else None


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its artifacts: next to an SQLite database; None leaves it to the store.

    MLflow's own choice is the working directory of whoever creates the experiment.
    """
    file = database(uri)
    return (file.parent / ARTIFACTS).as_uri() if file else None


def follow(uri: str, location: str) -> None:
    """Bring the addresses in a database up to date whose project was moved or copied since they were written.

    `location` is that of the experiment in use. New runs get their artifacts in the database's present folder;
    earlier runs get their new address if their artifacts came along.
    """
    file, old = database(uri), _old_home(location)
    if file is None or old is None or old == file.parent:
        return
    if _local(location).exists() and not (old / file.name).exists():
        return  # a place that somebody chose, not that of this database before
    renamed = {str(old): str(file.parent), old.as_uri(): file.parent.as_uri()}
    with closing(sqlite3.connect(file, timeout=20)) as opened, opened:
        opened.create_function("arrived", 1, lambda address: _local(address).exists())
        for table, column in LOCATIONS:
            came_along = "1" if table == "experiments" else "arrived(:new || substr({0}, length(:old) + 1))"
            for before, after in renamed.items():
                opened.execute(
                    f"update {table} set {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
                    f"where substr({column}, 1, length(:old) + 1) = :old || '/' and {came_along.format(column)}",
                    {"old": before, "new": after},
                )


def _old_home(location: str) -> Path | None:
    """The folder in which the artifact location of an experiment was chosen; None if somebody named another one."""
    path = _local(location) if urlsplit(location).scheme in {"", "file"} else None
    if path is None:
        return None
    if path.name == ARTIFACTS:
        return path.parent
    return path.parent.parent if path.parent.name == "mlruns" else None  # MLflow's own choice: mlruns/<experiment>


def _local(address: str) -> Path:
    return Path(url2pathname(urlsplit(address).path) if address.startswith("file:") else address)


def how_to_look(uri: str, experiment_id: str) -> str:
    """How a person sees our runs in a browser: MLflow's own start page opens another view."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    shown = without_password(uri)
    if uri.startswith(("http://", "https://")):
        return f"{shown.rstrip('/')}/{page}"
    if uri.startswith("databricks"):
        return f"experiment {experiment_id} in {shown}"
    return f"`uv run mlflow ui --backend-store-uri {_argument(uri)} --port {PORT}`, then http://127.0.0.1:{PORT}/{page}"


def explain(error: BaseException, uri: str) -> str:
    """What went wrong, on one line of at most 300 characters, and the way out where we know it; no passwords."""
    text = without_password(str(error).strip()) or type(error).__name__
    if "mlflow db upgrade" in text:
        return (
            "the database has the format of another version of MLflow; make a copy of it, "
            f"then run `uv run mlflow db upgrade {_argument(uri, absolute=True)}`"
        )
    if "MLFLOW_ALLOW_FILE_STORE" in text:
        return (
            f"MLflow no longer writes to folders like {uri}; set MLFLOW_TRACKING_URI=sqlite:///runs.db, "
            "or MLFLOW_ALLOW_FILE_STORE=true to insist"
        )
    if "unsupported URI" in text:
        return f"MLflow knows no address like {without_password(uri)}; that of a server begins with http:// or https://"
    text, _, _ = text.partition(" Response body: '<")  # a page of HTML
    text = re.sub(r"HTTPS?ConnectionPool\(.*?\): Max retries exceeded with url: \S+ \(Caused by (.*)\)", r"\1", text)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text.strip().splitlines()[0].strip()[:300]


def without_password(text: str) -> str:
    """The text without the user names and passwords in its addresses."""
    return re.sub(r"(\w[\w+.-]*://)[^:/\s@]*(?::\S*)?@", r"\1", text)


def _argument(uri: str, *, absolute: bool = False) -> str:
    """The address as an argument of a command; that of a store with a password stays a variable."""
    if without_password(uri) != uri:
        return '"$MLFLOW_TRACKING_URI"'
    file = database(uri)
    return shlex.quote(f"sqlite:///{file}" if absolute and file else uri)
