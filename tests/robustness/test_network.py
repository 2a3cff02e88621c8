"""Tests that a download without a network names each address that was tried, and leaves no file."""

import socket
from pathlib import Path

import pytest
from stage_run import outputs, run_stage, temporary_files, write_params

from imageclf.download.datasets import DATASETS

pytestmark = pytest.mark.faults


def test_without_a_network_each_address_is_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed_port = f"http://127.0.0.1:{listener.getsockname()[1]}"
    write_params(tmp_path, dataset="mnist", mirror=f"{closed_port}/mirror")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), closed_port)
    result = run_stage(tmp_path, "download", environment={**proxies, "no_proxy": "", "NO_PROXY": ""})
    assert result.code == 1
    assert result.error == "train-images-idx3-ubyte.gz could not be downloaded:"
    places = result.output.count("/train-images-idx3-ubyte.gz: cannot be reached")
    assert places == 2 + len(DATASETS["mnist"].addresses)
    assert "Set runtime.mirror in params.yaml, or IMAGECLF_MIRROR" in result.output
    assert outputs(tmp_path, "download") == {}
    assert temporary_files(tmp_path) == []
