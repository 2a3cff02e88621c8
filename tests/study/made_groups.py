"""Groups of experiments, made up for tests."""

from typing import Any

from imageclf.study import comparison
from imageclf.study.comparison import Group
from imageclf.study.experiments import Experiment


def experiment(
    name: str, accuracy: float, *, seed: int = 0, state: str = "success", dataset: str = "mnist", **others: Any
) -> Experiment:
    """Return an experiment with these parameters and this test accuracy."""
    metrics = {
        "train": {"loss": 0.1, "accuracy": accuracy + 0.01},
        "epoch": 1,
        "test": {"loss": 0.2, "accuracy": accuracy, "top5": 1.0, "gap": 0.01},
    }
    params = {"seed": seed, "epochs": 5, "dataset": dataset, "folder": "data/custom", "classes": None, **others}
    return Experiment(name, f"rev-{name}", state, params, metrics if state == "success" else {}, (), None)


def group(name: str, *accuracies: float, **parameters: Any) -> Group:
    """Return a group with one seed for each accuracy."""
    members = [
        experiment(f"{name}-s{seed}", accuracy, seed=seed, **parameters) for seed, accuracy in enumerate(accuracies)
    ]
    return comparison.groups([name], {member.name: member for member in members})[0]
