"""Without a network a real download ends in one sentence for each place that was tried, and leaves nothing."""

import socket
from pathlib import Path

import pytest
from stage_run import litter, outputs, run_stage, write_params

from imageclf.datasets import DATASETS

pytestmark = pytest.mark.faults


def test_no_network_is_told_place_by_place(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    write_params(tmp_path, dataset="mnist", mirror=f"{nobody}/mirror")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nobody)
    ended = run_stage(tmp_path, "download", environment={**proxies, "no_proxy": "", "NO_PROXY": ""})
    assert ended.code == 1
    assert ended.sentence == "train-images-idx3-ubyte.gz could not be had:"
    places = ended.said.count("/train-images-idx3-ubyte.gz: cannot be reached")
    assert places == 2 + len(DATASETS["mnist"].addresses)
    assert "Set runtime.mirror in params.yaml, or IMAGECLF_MIRROR" in ended.said
    assert outputs(tmp_path, "download") == {}
    assert litter(tmp_path) == []
