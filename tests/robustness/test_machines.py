"""Tests of a GPU that torch finds but cannot use."""

from pathlib import Path

import pytest
import torch
from imports import ROOT
from stage_run import StageResult, outputs, run_stage, run_until, write_params

pytestmark = pytest.mark.faults

SEES_A_GPU = """
import importlib.abc, importlib.util, sys


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.cuda.is_available = lambda: True

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def run_customized(root: Path, stage: str, sitecustomize: str) -> StageResult:
    """Run a stage in an interpreter that `sitecustomize` has changed."""
    (root / "site").mkdir(exist_ok=True)
    (root / "site" / "sitecustomize.py").write_text(sitecustomize)
    return run_stage(root, stage, environment={"PYTHONPATH": f"{root / 'site'}:{ROOT}"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that works")
def test_a_gpu_that_cannot_be_used_is_skipped_by_auto_and_refused_by_name(tmp_path: Path) -> None:
    write_params(tmp_path)
    run_until(tmp_path, "evaluate")
    with_cpu = outputs(tmp_path, "train")
    result = run_customized(tmp_path, "train", SEES_A_GPU)
    assert result.code == 0, result.output
    assert "runtime.device: cuda cannot be used (" in result.output
    assert "auto takes the next device" in result.output
    assert outputs(tmp_path, "train") == with_cpu
    write_params(tmp_path, device="cuda")
    for stage in ("train", "evaluate"):
        result = run_customized(tmp_path, stage, SEES_A_GPU)
        assert result.code == 1
        assert result.error.startswith("runtime.device: cuda cannot be used (")
        assert result.error.endswith("); set it to cpu or auto in params.yaml")
    assert outputs(tmp_path, "train") == with_cpu
