"""Measure requests per second of the served model: MLflow's server, and the same path in a bare web application.

    uv run python -m benchmarks.serving --model data/model --image picture.png

Needs `ab` (Debian: apache2-utils). Each request holds one image. Prints a table; run nothing else at the same time.
"""

import argparse
import base64
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks import machine, served
from benchmarks.output import markdown_table
from imageclf.core import process

CLIENTS = (1, 8, 32)


def load(address: str, body: Path, clients: int, seconds: int) -> tuple[float, float, float]:
    """Send requests for some seconds; return requests per second, and the median and 99% of the milliseconds."""
    command = ["ab", "-q", "-k", "-t", str(seconds), "-n", "1000000", "-c", str(clients), "-T", "application/json"]
    done = subprocess.run([*command, "-p", str(body), address], capture_output=True, text=True, check=True)
    if re.search(r"Non-2xx", done.stdout):
        raise RuntimeError(done.stdout)
    rate = re.search(r"Requests per second:\s+([\d.]+)", done.stdout)
    percentiles = dict(re.findall(r"^\s+(50|99)%\s+(\d+)", done.stdout, re.MULTILINE))
    assert rate
    return float(rate[1]), float(percentiles["50"]), float(percentiles["99"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure requests per second of the served model.")
    parser.add_argument("--model", type=Path, default=Path("data/model"), help="folder of a checkpoint")
    parser.add_argument("--image", type=Path, required=True, help="image file that each request sends")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lines = [["server", "clients", "requests/s", "p50, ms", "p99, ms"]]
    with tempfile.TemporaryDirectory() as work:
        body = Path(work, "body.json")
        body.write_text(json.dumps({"inputs": [base64.b64encode(given.image.read_bytes()).decode()]}))
        servers = {
            "mlflow models serve": served.mlflow_server(served.save_model(given.model.resolve(), Path(work))),
            "bare application": served.bare_server(given.model.resolve()),
        }
        for name, server in servers.items():
            with server as address:
                load(address, body, 1, 2)
                for clients in CLIENTS:
                    rounds = [load(address, body, clients, given.seconds) for _ in range(given.rounds)]
                    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
                    lines.append([name, str(clients), f"{medians[0]:.0f}", *(f"{value:.0f}" for value in medians[1:])])
    print(machine.sentence(machine.describe_with_commit(("torch", "mlflow", "starlette", "uvicorn"))))
    print(markdown_table(lines))


if __name__ == "__main__":
    process.run(main)
