"""Score the trained net on the test split, and plot the results: `python -m stages.evaluate`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from imageclf import params
from imageclf.contracts import dataset, model
from imageclf.contracts.dataset import Prepared
from imageclf.core import files, paths, process
from imageclf.preprocess.report import record
from imageclf.tracking import events


def main() -> None:
    """Write metrics/test.json, the tables and the plots; add them to the run of this model."""
    settings = params.load()
    data, spec = dataset.read(paths.PROCESSED, settings.runtime.shard_cache), model.read_spec(paths.MODEL)
    with events.evaluation_run(spec, enabled=settings.runtime.tracking) as recorder:
        events.training_restored(recorder, settings, data.manifest, spec)
        scores = evaluate(settings.runtime, data)
        events.evaluated(recorder, settings, data.manifest, scores, spec.epoch)


def evaluate(machine: params.RuntimeParams, data: Prepared) -> dict[str, float]:
    """Predict the test split, write numbers, tables, plots and the model card, and return the scores by name."""
    import torch

    from imageclf.evaluation import card, fonts, pictures, quality, tables
    from imageclf.inference import checkpoint
    from imageclf.training import runtime, scoring
    from imageclf.training.loading.batches import Batches
    from imageclf.training.losses import LOSSES

    device = runtime.choose_device(machine.device)
    runtime.set_threads(machine.threads)
    loaded, test = checkpoint.load(paths.MODEL), data["test"]
    batches = Batches(test, loaded.normalize, scoring.BATCH_SIZE, device)
    outputs = list(scoring.predict(runtime.place(loaded.net, device), batches))
    scores = asdict(scoring.compute_scores(outputs, LOSSES[loaded.spec.loss]))
    probabilities = torch.cat([logits for logits, _ in outputs]).softmax(dim=1).cpu().numpy()

    labels, names = test.labels, loaded.spec.classes
    confusion = tables.confusion_matrix(labels, probabilities.argmax(axis=1), len(names))
    classes, calibration = quality.per_class(confusion), quality.calibration(labels, probabilities)
    train_scores = json.loads(paths.TRAIN_SCORES.read_text())
    train_scores.pop("epoch")
    scores |= quality.class_scores(classes)
    scores |= {"calibration_error": calibration.error, "gap": train_scores["train"]["accuracy"] - scores["accuracy"]}
    about_data = record.read(paths.DATA_REPORT)
    remarks = quality.remarks(train_scores["train"]["accuracy"], scores["accuracy"], classes, names)
    remarks += about_data.warnings

    files.write_json(paths.TEST_SCORES, {"test": scores})
    tables.write_predictions(paths.PREDICTIONS, names, labels, probabilities)
    tables.write_per_class(paths.PER_CLASS, names, classes)
    found = card.Findings(train=train_scores, test=scores, classes=classes, calibration=calibration, remarks=remarks)
    files.write_text(paths.MODEL_CARD, card.as_markdown(loaded.spec, data.manifest, found))
    pictures.draw_test(paths.PLOTS, data, probabilities)
    pictures.draw_training(paths.PLOTS, data, loaded)
    pictures.draw_data(paths.PLOTS, data, about_data)
    report(scores, names, remarks)
    print(fonts.note(names), end="")
    return scores


def report(scores: dict[str, float], names: Sequence[str], remarks: Sequence[str]) -> None:
    """Print the scores and the remarks."""
    top5 = f"top-5 {scores['top5']:.2%}, " if len(names) > 5 else ""  # with five classes or fewer it is always 100%
    balanced = f"balanced {scores['balanced_accuracy']:.2%}, "
    print(f"test accuracy {scores['accuracy']:.2%}, {balanced}{top5}loss {scores['loss']:.4f}")
    for remark in remarks:
        print(remark)


if __name__ == "__main__":
    process.run(main)
