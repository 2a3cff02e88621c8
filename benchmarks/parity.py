"""Compare the probabilities of one model on every way to use it.

    uv run --group onnx python -m benchmarks.parity --mirror ../shared/datasets

Trains nets on MNIST for one epoch: plain, permuted, whitened, resized; and one on gray digits. Then 1,000 test images
go through evaluate, predict on PNG files, MLflow's server over HTTP, the MLflow model in a process that has neither
this project nor its folder, and ONNX Runtime. Prints the largest difference from evaluate.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import ROOT, served
from benchmarks.output import markdown_table
from imageclf import yaml12
from imageclf.contracts import dataset
from imageclf.core import paths, process
from imageclf.download.datasets import DATASETS
from imageclf.inference import checkpoint
from imageclf.inference.predictor import Predictor
from imageclf.study import recipes
from imageclf.training import scoring
from imageclf.training.loading.batches import Batches

IMAGES, BATCH = 1000, 50
BASE: dict[str, Any] = {"dataset": "mnist", "epochs": 1, "batch_size": 100, "runtime.tracking": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "permuted": {"permute": True},
    "zca": {"normalize": "zca", "model": "mlp"},
    "resized": {"image_size": 20},
    "padded": {"pad": 2, "model": "convnet32"},
}
FOREIGN = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow
import numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
assert not [path for path in sys.path if "imageclf" in path and "mlruns" not in path and "/artifacts/code" not in path]
texts = json.load(open(sys.argv[2]))
print(json.dumps([[*answer["probabilities"].values()] for answer in model.predict(np.array(texts, dtype=object))]))
"""

Probabilities = NDArray[np.float32]


def train(folder: Path, changes: dict[str, Any], mirror: Path) -> None:
    """Run the stages up to train in `folder`."""
    folder.mkdir()
    values = recipes.merge(yaml12.read(ROOT / paths.PARAMS), {**BASE, **changes, "runtime.mirror": str(mirror)})
    (folder / paths.PARAMS).write_text(json.dumps(values))  # JSON is YAML
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": search, "DVC_ROOT": str(folder)}
    for stage in ("check", "list", "download", "preprocess", "weights", "train"):
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def evaluated(folder: Path) -> Probabilities:
    """Return what evaluate computes for the first test images."""
    data, loaded = dataset.read(folder / paths.PROCESSED), checkpoint.load(folder / paths.MODEL)
    batches = Batches(data["test"], loaded.normalize, scoring.BATCH_SIZE, torch.device("cpu"))
    logits = torch.cat([each for each, _ in scoring.predict(loaded.net, batches)])
    return logits.softmax(dim=1).numpy()[:IMAGES]


def over_http(model: Path, texts: list[str]) -> Probabilities:
    """Return the answers of `mlflow models serve`."""
    found = []
    with served.mlflow_server(model) as address:
        for start in range(0, len(texts), BATCH):
            answer = requests.post(address, json={"inputs": texts[start : start + BATCH]}, timeout=60).json()
            found += [list(each["probabilities"].values()) for each in answer["predictions"]]
    return np.array(found, np.float32)


def in_a_foreign_process(model: Path, texts: list[str], work: Path) -> Probabilities:
    """Return the answers of the loaded MLflow model, in a process without this project."""
    (work / "texts.json").write_text(json.dumps(texts))
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    # -I and -S leave out the working directory, PYTHONPATH, and the link to this project in site-packages.
    code = f"import sys; sys.path.append({packages!r})\n{FOREIGN}"
    command = [sys.executable, "-I", "-S", "-c", code, str(model), str(work / "texts.json")]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, check=True)
    return np.array(json.loads(done.stdout.splitlines()[-1]), np.float32)


def by_onnx(folder: Path, prepared: NDArray[np.uint8]) -> Probabilities:
    """Return the answers of the exported program in ONNX Runtime."""
    import onnxruntime

    file = folder / "model.onnx"
    options = ["export", "--model", str(folder / paths.MODEL), "--format", "onnx", "--output", str(file)]
    subprocess.run([sys.executable, "-c", "from imageclf import cli; cli.run()", *options], check=True, cwd=folder)
    session = onnxruntime.InferenceSession(str(file))
    (output, *_) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(prepared)})
    return np.asarray(output)


def compare(folder: Path, raw: NDArray[np.uint8]) -> list[str]:
    """Return the largest difference from evaluate on each way, "other classes" if a class differs."""
    predictor = Predictor.load(folder / paths.MODEL, torch.device("cpu"))
    files = []
    for number, image in enumerate(raw):
        files.append(folder / f"{number}.png")
        Image.fromarray(image[0]).save(files[-1])
    texts = [base64.b64encode(file.read_bytes()).decode() for file in files]
    (folder / "store").mkdir()
    model = served.save_model(folder / paths.MODEL, folder / "store")
    expected = evaluated(folder)
    ways = [
        predictor.probabilities(np.stack([predictor.read(file.read_bytes()) for file in files])),
        over_http(model, texts),
        in_a_foreign_process(model, texts, folder),
        by_onnx(folder, predictor.prepared(raw)),
    ]
    same = [(found.argmax(axis=1) == expected.argmax(axis=1)).all() for found in ways]
    return [
        f"{np.abs(found - expected).max():.1e}" if classes else "other classes"
        for found, classes in zip(ways, same, strict=True)
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare the probabilities on every way to use a model.")
    parser.add_argument("--mirror", type=Path, required=True, help="folder with mnist/ and its four archives")
    given = parser.parse_args()
    lines = [["", "predict", "HTTP", "MLflow model alone", "ONNX Runtime"]]
    with tempfile.TemporaryDirectory(prefix="parity-") as work:
        for name, changes in VARIANTS.items():
            folder = Path(work, name)
            train(folder, changes, given.mirror.resolve())
            chunks = DATASETS["mnist"].read(folder / paths.RAW).splits["test"].chunks()
            lines.append([name, *compare(folder, next(iter(chunks))[:IMAGES])])
            print(lines[-1], flush=True)
    print(markdown_table(lines))


if __name__ == "__main__":
    process.run(main)
