"""Accuracies of minimal pairs from their scores, as the protocols have them, with ties reported."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palenka.eval.statistics import suite_standard_error, task_standard_error
from palenka.eval.suites import Suite


@dataclass(frozen=True)
class PairScores:
    """What a model says of the pairs of a suite.

    Attributes:
        suite: its name.
        tasks: of each pair, [n].
        indices: of each pair in its task, [n].
        good: log-probability of the right text in nats, [n].
        bad: of the wrong one, [n].
    """

    suite: Suite
    tasks: NDArray[np.str_]
    indices: NDArray[np.int64]
    good: NDArray[np.float64]
    bad: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the protocols count each pair as right: ties go to the good text."""
        return self.good >= self.bad

    def by_task(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each task in the order of its first pair, with the places of its pairs."""
        names, first, task_of = np.unique(self.tasks, return_index=True, return_inverse=True)
        for number in np.argsort(first):
            yield str(names[number]), np.flatnonzero(task_of == number)


def accuracies(scores: PairScores) -> dict[str, Any]:
    """Accuracy of a suite (the unweighted mean over its tasks) and of its tasks, with standard errors and ties."""
    right, tied = scores.right, scores.good == scores.bad
    tasks, halves = {}, []
    for name, places in scores.by_task():
        accuracy, count = float(right[places].mean()), len(places)
        tasks[name] = {"accuracy": accuracy, "stderr": task_standard_error(accuracy, count), "n": count}
        halves.append(accuracy - float(tied[places].mean()) / 2)
    errors, counts = [task["stderr"] for task in tasks.values()], [int(task["n"]) for task in tasks.values()]
    return {
        "accuracy": float(np.mean([task["accuracy"] for task in tasks.values()])),
        "stderr": suite_standard_error(errors, counts),
        "n": sum(counts),
        "ties": int(tied.sum()),
        "tie_rate": float(tied.mean()),
        "tie_half_accuracy": float(np.mean(halves)),
        "tasks": tasks,
    }
