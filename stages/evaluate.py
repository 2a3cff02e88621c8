"""Score the trained net on the test split, and plot the results: `python -m stages.evaluate`."""

import json
from dataclasses import asdict

from imageclf import params
from imageclf.contracts import dataset, model
from imageclf.contracts.dataset import Prepared
from imageclf.core import files, paths, process
from imageclf.tracking import events


def main() -> None:
    """Write metrics/test.json, the tables and the plots; add them to the run of this model."""
    settings = params.load()
    data, spec = dataset.read(paths.PROCESSED), model.read_spec(paths.MODEL)
    with events.evaluation_run(spec, enabled=settings.runtime.tracking) as recorder:
        events.training_restored(recorder, settings, data.manifest, spec)
        scores = evaluate(settings.runtime, data)
        events.evaluated(recorder, scores, spec.epoch)


def evaluate(machine: params.RuntimeParams, data: Prepared) -> dict[str, float]:
    """Predict the test split, write numbers, tables and plots, and return the scores by name."""
    import torch

    from imageclf.evaluation import fonts, plots, tables
    from imageclf.inference import checkpoint
    from imageclf.training import runtime, scoring
    from imageclf.training.batches import Batches
    from imageclf.training.losses import LOSSES

    device = runtime.choose_device(machine.device)
    runtime.set_threads(machine.threads)
    loaded, test = checkpoint.load(paths.MODEL), data["test"]
    batches = Batches(test, loaded.normalize, scoring.BATCH_SIZE, device)
    outputs = list(scoring.predict(runtime.place(loaded.net, device), batches))
    scores = asdict(scoring.compute_scores(outputs, LOSSES[loaded.spec.loss]))
    scores["gap"] = json.loads(paths.TRAIN_SCORES.read_text())["train"]["accuracy"] - scores["accuracy"]
    probabilities = torch.cat([logits for logits, _ in outputs]).softmax(dim=1).cpu().numpy()

    labels, classes = test.labels, loaded.spec.classes
    images = dataset.unpermute(test.images, data.permutation)
    tables.write_predictions(paths.PREDICTIONS, classes, labels, probabilities)
    confusion = tables.confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    tables.write_per_class(paths.PER_CLASS, classes, confusion)
    plots.plot_confusion(paths.PLOTS / "confusion.png", classes, confusion)
    for name, rows in (("samples", slice(8)), ("mistakes", tables.most_confident_mistakes(labels, probabilities)[:8])):
        plot = paths.PLOTS / f"{name}.png"
        plots.plot_predictions(plot, images[rows], labels[rows], probabilities[rows], classes)
    files.write_json(paths.TEST_SCORES, {"test": scores})
    top5 = f"top-5 {scores['top5']:.2%}, " if len(classes) > 5 else ""  # with five classes or fewer it is always 100%
    print(f"test accuracy {scores['accuracy']:.2%}, {top5}loss {scores['loss']:.4f}")
    print(fonts.note(classes), end="")
    return scores


if __name__ == "__main__":
    process.run(main)
