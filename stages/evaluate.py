"""Score the trained net on the test split, once, and draw what it does: `python -m stages.evaluate`."""

import csv
import json
from dataclasses import asdict
from typing import Any

from imageclf import errors, files, params, paths, splits, tracking
from imageclf.tracking import Recorder


def main() -> None:
    """Write metrics/test.json, the tables and the pictures; add them to the run of this model."""
    settings = params.load()
    data = splits.read(paths.PROCESSED)
    recipe = files.read_manifest(paths.RECIPE, made_by="train")
    digest = recipe["weights_sha256"]
    with tracking.recording("evaluate", model_sha256=digest, enabled=settings.runtime.tracking) as recorder:
        with recorder.if_restored():
            retell(recorder, settings, data, recipe)
        evaluate(settings.runtime, data, recorder)


def retell(recorder: Recorder, settings: params.Params, data: splits.Prepared, recipe: dict[str, Any]) -> None:
    """Record the training from its outputs, as it would have recorded itself."""
    recorder.params(settings.model_dump(exclude={"runtime"}))
    recorder.dataset(settings.dataset, data.sha256)
    recorder.tags({"data_sha256": data.sha256})
    with paths.HISTORY.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            number = int(row.pop("epoch"))
            recorder.epoch({"number": number, **{key: float(value) for key, value in row.items() if value}})
    recorder.scores({"best": json.loads(paths.TRAIN_SCORES.read_text())}, step=recipe["epoch"])
    recorder.artifacts([paths.HISTORY, paths.TRAIN_SCORES])
    recorder.model(paths.MODEL, recipe["epoch"])


def evaluate(machine: params.RuntimeParams, data: splits.Prepared, recorder: Recorder) -> None:
    """Predict the test split, then write numbers, tables and pictures."""
    import torch

    from imageclf import checkpoint, fonts, reports, runtime, scoring
    from imageclf.batches import Batches
    from imageclf.losses import LOSSES

    device = runtime.choose_device(machine.device)
    runtime.set_threads(machine.threads)
    loaded = checkpoint.load(paths.MODEL)
    recipe, test = loaded.recipe, data["test"]
    batches = Batches(test, loaded.normalize, scoring.BATCH_SIZE, device)
    outputs = list(scoring.predict(runtime.place(loaded.net, device), batches))
    scores = asdict(scoring.compute_scores(outputs, LOSSES[recipe["loss"]]))
    scores["gap"] = json.loads(paths.TRAIN_SCORES.read_text())["train"]["accuracy"] - scores["accuracy"]
    probabilities = torch.cat([logits for logits, _ in outputs]).softmax(dim=1).cpu().numpy()

    labels, classes = test.labels, recipe["classes"]
    images = splits.unpermute(test.images, data.permutation)
    reports.write_predictions(paths.PREDICTIONS, classes, labels, probabilities)
    confusion = reports.confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    reports.write_per_class(paths.PER_CLASS, classes, confusion)
    reports.plot_confusion(paths.PLOTS / "confusion.png", classes, confusion)
    for name, rows in (("samples", slice(8)), ("mistakes", reports.surest_mistakes(labels, probabilities)[:8])):
        plot = paths.PLOTS / f"{name}.png"
        reports.plot_predictions(plot, images[rows], labels[rows], probabilities[rows], classes)
    files.write_json(paths.TEST_SCORES, {"test": scores})
    top5 = f"top-5 {scores['top5']:.2%}, " if len(classes) > 5 else ""  # else it is 100% whatever the net says
    print(f"test accuracy {scores['accuracy']:.2%}, {top5}loss {scores['loss']:.4f}")
    print(fonts.note(classes), end="")

    recorder.scores({"test": scores}, step=recipe["epoch"])
    recorder.artifacts([paths.TEST_SCORES, paths.PREDICTIONS, paths.PER_CLASS])
    recorder.artifacts(sorted(paths.PLOTS.glob("*.png")), folder="plots")


if __name__ == "__main__":
    errors.run(main)
