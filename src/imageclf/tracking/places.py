"""Addresses of MLflow's store and its artifacts. Relative ones start at the repository, where the recorder runs."""

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
"""Port for `mlflow ui`; macOS uses 5000, MLflow's default, itself."""
LOCATIONS = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]
"""The columns of MLflow's database that hold the addresses of artifacts."""


def tracking_uri() -> str:
    """Return the address of the store: `MLFLOW_TRACKING_URI`, or a database in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT


def database(uri: str) -> Path | None:
    """Return the absolute path of an SQLite store; None for any other store."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]).absolute() if found and found[1] != ":memory:" else None


def artifact_location(uri: str) -> str | None:
    """Return the artifact folder of a new experiment, next to its SQLite database; None for MLflow's default.

    For a database, the default is the working directory of the process that creates the experiment.
    """
    file = database(uri)
    return (file.parent / ARTIFACTS).as_uri() if file else None


def update_locations(uri: str, location: str) -> None:
    """Update the addresses in a database whose project was moved or copied.

    `location` is the artifact location of the experiment in use. New runs get their artifacts in the present folder
    of the database; earlier runs get their new address if their artifacts were moved too.
    """
    file, old = database(uri), _former_folder(location)
    if file is None or old is None or old == file.parent:
        return
    if _local(location).exists() and not (old / file.name).exists():
        return  # the user chose this folder; the database was never there
    renamed = {str(old): str(file.parent), old.as_uri(): file.parent.as_uri()}
    with closing(sqlite3.connect(file, timeout=20)) as opened, opened:
        opened.create_function("exists_now", 1, lambda address: _local(address).exists())
        for table, column in LOCATIONS:
            moved = "1" if table == "experiments" else "exists_now(:new || substr({0}, length(:old) + 1))"
            for before, after in renamed.items():
                opened.execute(
                    f"update {table} set {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
                    f"where substr({column}, 1, length(:old) + 1) = :old || '/' and {moved.format(column)}",
                    {"old": before, "new": after},
                )


def _former_folder(location: str) -> Path | None:
    """Return the folder of the project when its experiment was created; None if the user chose another location."""
    path = _local(location) if urlsplit(location).scheme in {"", "file"} else None
    if path is None:
        return None
    if path.name == ARTIFACTS:
        return path.parent
    return path.parent.parent if path.parent.name == "mlruns" else None  # MLflow's default: mlruns/<experiment>


def _local(address: str) -> Path:
    return Path(url2pathname(urlsplit(address).path) if address.startswith("file:") else address)


def how_to_view(uri: str, page: str) -> str:
    """Return the address of a page in a browser, with the command to start MLflow's user interface if needed."""
    shown = without_password(uri)
    if uri.startswith(("http://", "https://")):
        return f"{shown.rstrip('/')}/{page}"
    if uri.startswith("databricks"):
        return f"{page} in {shown}"
    return f"`uv run mlflow ui --backend-store-uri {_argument(uri)} --port {PORT}`, then http://127.0.0.1:{PORT}/{page}"


def explain(error: BaseException, uri: str) -> str:
    """Return a line of at most 300 characters with the problem and, if known, the remedy; without passwords."""
    text = without_password(str(error).strip()) or type(error).__name__
    if "mlflow db upgrade" in text:
        return (
            "the database has the format of another version of MLflow; copy the database, "
            f"then run `uv run mlflow db upgrade {_argument(uri, absolute=True)}`"
        )
    if "MLFLOW_ALLOW_FILE_STORE" in text:
        return (
            f"MLflow no longer writes to folders like {uri}; set MLFLOW_TRACKING_URI=sqlite:///runs.db, "
            "or set MLFLOW_ALLOW_FILE_STORE=true to use the folder"
        )
    if "unsupported URI" in text:
        return (
            f"MLflow does not support the address {without_password(uri)}; a server's starts with http:// or https://"
        )
    text, _, _ = text.partition(" Response body: '<")  # an HTML page
    text = re.sub(r"^\(raised as a result of .*\n", "", text)  # SQLAlchemy's advice, before the cause
    text = re.sub(r"HTTPS?ConnectionPool\(.*?\): Max retries exceeded with url: \S+ \(Caused by (.*)\)", r"\1", text)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text.strip().splitlines()[0].strip()[:300]


def without_password(text: str) -> str:
    """Return the text without the user names and passwords in its addresses."""
    return re.sub(r"(\w[\w+.-]*://)[^:/\s@]*(?::\S*)?@", r"\1", text)


def _argument(uri: str, *, absolute: bool = False) -> str:
    """Return an address as an argument of a command; an address with a password stays a variable."""
    if without_password(uri) != uri:
        return '"$MLFLOW_TRACKING_URI"'
    file = database(uri)
    return shlex.quote(f"sqlite:///{file}" if absolute and file else uri)
