"""A real server with the protocol of S3, SeaweedFS, with the bucket `bucket`; it can be killed and started again."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.served import free_port, running

WEED = Path(sys.executable).parent / "weed"
INSTALLED = WEED.exists() and importlib.util.find_spec("s3fs") is not None
MAKE_BUCKET = "import s3fs; s3fs.S3FileSystem().makedirs('bucket', exist_ok=True)"


@contextmanager
def running_on(port: int, folder: Path) -> Iterator[dict[str, str]]:
    """Run the server on a port, with its data in `folder`; yield `keys`. The end of the block kills it."""
    folder.mkdir(exist_ok=True)
    identity = {"name": "team", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = [f"-{part}.port={free_port()}" for part in ("master", "volume", "filer")]
    ports += [f"-{part}.port.grpc={free_port()}" for part in ("master", "volume", "filer", "s3")]
    command = [str(WEED), "server", f"-dir={folder}", "-ip=127.0.0.1", "-master.telemetry=false", *ports]
    command += ["-volume.max=20", "-s3", f"-s3.port={port}", f"-s3.config={folder / 's3.json'}"]
    with running(command, f"http://127.0.0.1:{port}/"):
        subprocess.run([sys.executable, "-c", MAKE_BUCKET], env={**os.environ, **keys(port)}, check=True)
        yield keys(port)


def keys(port: int) -> dict[str, str]:
    """Return the variables that lead a client of S3 to a port of this machine."""
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
