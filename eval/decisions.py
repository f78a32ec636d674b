"""Suites whose items a model gets right or wrong: accuracies with standard errors, and McNemar's test of two models."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from palenka.eval.statistics import (
    difference_standard_error,
    mcnemar_p_value,
    mean_standard_error,
    normal_interval,
    pooled_standard_error,
    share_interval,
    task_standard_error,
)
from palenka.eval.suite import Data, Figure, Measured, Score, Suite, by_task, column

if TYPE_CHECKING:
    import pyarrow as pa

Decisions = NDArray[np.bool_]


class DecisionSuite(Suite[Data]):
    """A suite of decisions: its accuracy is the unweighted mean over its tasks, as in the protocols."""

    version = 2

    def right(self, items: "pa.Table") -> Decisions:
        """Whether each item counts as right, [n]: the column ``right``, unless a suite decides by other numbers."""
        return column(items, "right").astype(np.bool_)

    def figures(self, items: "pa.Table") -> Measured:
        """The accuracy of the suite and of its tasks."""
        return Measured(figures={"accuracy": _accuracy(_tasks_of(items, self.right(items)))})

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """McNemar's test and the interval of the difference, for the suite and each task.

        A suite's difference is the mean over tasks, like its accuracy; interval and test are of this mean. A row also
        counts the items that only one model gets right.
        """
        first, second = (_tasks_of(items, self.right(items)) for items in (ours, theirs))
        return _row(first, second) | {
            "tasks": {task: _row({task: first[task]}, {task: second[task]}) for task in first}
        }


def mean_of_tasks(scores: Mapping[str, Score]) -> Figure:
    """The unweighted mean of the accuracies of tasks, with its own error and interval."""
    errors, counts = ([score.stderr or 0.0 for score in scores.values()], [score.n or 0 for score in scores.values()])
    value = float(np.mean([score.value for score in scores.values()]))
    error = mean_standard_error(errors)
    (only, *others) = scores.values()
    return Figure(
        value=value,
        stderr=error,
        interval=normal_interval(value, error) if others else only.interval,
        n=sum(counts),
        higher_is_better=True,
        pooled_stderr=pooled_standard_error(errors, counts) if all(counts) else None,
        tasks=dict(scores),
    )


def _tasks_of(items: "pa.Table", right: Decisions) -> dict[str, Decisions]:
    return {task: right[places] for task, places in by_task(items)}


def _accuracy(tasks: Mapping[str, Decisions]) -> Figure:
    scores, errors = {}, []
    for task, right in tasks.items():
        accuracy, count = float(right.mean()), len(right)
        errors.append(task_standard_error(accuracy, count))
        scores[task] = Score(value=accuracy, stderr=errors[-1], interval=share_interval(accuracy, count), n=count)
    return mean_of_tasks(scores)


def _row(first: Mapping[str, Decisions], second: Mapping[str, Decisions]) -> dict[str, Any]:
    ours, theirs = (float(np.mean([right.mean() for right in tasks.values()])) for tasks in (first, second))
    differences: Sequence[NDArray[np.int64]] = [first[task].astype(np.int64) - second[task] for task in first]
    first_alone, second_alone = (sum(int((task == sign).sum()) for task in differences) for sign in (1, -1))
    error = mean_standard_error([difference_standard_error(task) for task in differences])
    return {
        "n": sum(map(len, differences)),
        "first": ours,
        "second": theirs,
        "difference": ours - theirs,
        "interval": list(normal_interval(ours - theirs, error)),
        "first_alone": first_alone,
        "second_alone": second_alone,
        "p_value": mcnemar_p_value(differences),
    }
