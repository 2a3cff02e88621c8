"""Put git back on its branch after a `dvc exp run` that was killed.

DVC detaches HEAD while an experiment runs in the workspace, and puts it back at the end. If DVC is killed,
HEAD stays detached, and later commits are on no branch. The stage ends shortly after DVC, so it puts HEAD back.
"""

import os
import subprocess
from pathlib import Path

from imageclf.core import paths

EXEC = "refs/exps/exec/"
"""Prefix of the references that DVC keeps while an experiment runs."""


def reattach() -> str | None:
    """Point HEAD at the branch from which DVC detached it; call this only after DVC has ended.

    Returns the branch's name, or None if nothing was changed. Files and the index do not change, because HEAD moves
    only to a branch at the commit that is checked out.
    """
    if "DVC_EXP_BASELINE_REV" not in os.environ or Path.cwd() != paths.repository():
        return None  # `dvc repro`, or an experiment in a copy: DVC detached nothing here
    commit, branch = git("rev-parse", "HEAD"), git("rev-parse", "--symbolic-full-name", "@{-1}")
    killed = bool(git("rev-parse", "-q", "--verify", f"{EXEC}EXEC_MERGE"))  # DVC deletes it when it ends normally
    here = commit == git("rev-parse", "-q", "--verify", f"{EXEC}EXEC_HEAD")
    if not (commit and killed and here and branch.startswith("refs/heads/")):
        return None
    if git("symbolic-ref", "-q", "HEAD") or commit != git("rev-parse", "-q", "--verify", branch):
        return None
    git("symbolic-ref", "-m", "imageclf: DVC has ended", "HEAD", branch)
    return branch.removeprefix("refs/heads/")


def git(*arguments: str, folder: str | None = None) -> str:
    """Return the output of a git command in `folder`; "" if it fails or git is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
