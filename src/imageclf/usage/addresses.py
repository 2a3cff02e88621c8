"""The folder of a trained model by its address: a folder, an MLflow address or the name of a DVC experiment."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imageclf.contracts.model import SPEC
from imageclf.core import paths
from imageclf.core.errors import UserError

HELP = f"""
a folder such as {paths.MODEL} (the default), an MLflow address such as models:/name@champion or runs:/ID, or the
name of a DVC experiment
"""
IN_MLFLOW = Path("data/model")
"""Folder of the checkpoint inside a model of MLflow."""


@contextmanager
def located(address: str | None) -> Iterator[Path]:
    """Yield the folder of a checkpoint, inside the context. Raises `UserError` if the address names no model."""
    with tempfile.TemporaryDirectory(prefix="imageclf-") as work:
        yield _folder(address, Path(work))


def _folder(address: str | None, work: Path) -> Path:
    """Return the folder of the checkpoint, downloaded to `work` unless it is a folder already."""
    if address is None:
        return paths.MODEL
    given = Path(address)
    if given.is_dir():
        return _checkpoint(given)
    if re.match(r"[\w+.-]+:/", address):
        from imageclf.tracking import stored

        return _checkpoint(stored.download(address, work))
    return _from_dvc(address, work / "model")


def _from_dvc(revision: str, folder: Path) -> Path:
    """Copy the model of a DVC experiment, or of a Git revision, from DVC's cache to `folder`; return `folder`."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.scm import RevError
    from dvc_data.index import DataIndexError
    from scmrepo.exceptions import SCMError

    try:
        # DVC runs --temp and --queue experiments in a copy of the project, which does not know the experiments.
        DVCFileSystem(os.environ.get("DVC_ROOT"), rev=revision).get(str(paths.MODEL), str(folder), recursive=True)
    except (RevError, SCMError, NotDvcRepoError):
        raise UserError(
            f"{revision} is not a folder, a DVC experiment or a Git revision; `uv run dvc exp show` lists experiments"
        ) from None
    except (DvcException, DataIndexError, OSError):
        raise UserError(f"{revision} has no {paths.MODEL} in DVC's cache; run the experiment again") from None
    return folder


def _checkpoint(folder: Path) -> Path:
    """Return the folder of the checkpoint in a folder of either kind. Raises `UserError` if there is none."""
    found = next((each for each in (folder, folder / IN_MLFLOW) if (each / SPEC).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has no {SPEC}: it is not a model of this project")
    return found
