"""Two models on the same minimal pairs: McNemar's test for each suite and task, and intervals of the difference.

`palenka eval compare A.parquet B.parquet`

On the same held-out windows, whose losses `palenka grid` and `palenka study` keep: the paired bootstrap.
"""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from palenka.eval.accuracy import PairScores, accuracies
from palenka.eval.results import read_results, read_scores, read_window_losses, writing
from palenka.eval.statistics import bootstrap_interval, difference_interval, mcnemar_p_value
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import write_record

_RESAMPLES = 2_000
"""Of all held-out windows; draws leave an interval's ends uncertain by some 3 % of its half-width."""


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The paired comparison of two models, by suite and task.

    A suite's test is over all its pairs; its difference is the mean over tasks, as its accuracy is, with pairs drawn
    anew within each task for the interval.

    Returns:
        ``{"first", "second", "suites": {suite: {<row>, "tasks": {task: <row>}}}}``; a row has ``n``, both accuracies,
        their ``difference`` with its ``interval``, the pairs that one alone gets right, and the ``p_value``.

    Raises:
        UserError: if a file holds no scores, or the two are not of the same pairs under the same protocol.
    """
    (ours, about_ours), (theirs, about_theirs) = read_scores(first), read_scores(second)
    remedy = "compare models on the same suites, protocol and data"
    refuse_difference(f"{second}", sorted(ours), sorted(theirs), remedy)
    refuse_difference(f"{second}", about_ours, about_theirs, remedy)
    suites = {}
    for suite, scores in ours.items():
        other = _in_order_of(scores, theirs[suite], first, second)
        wins, losses = scores.right & ~other.right, other.right & ~scores.right
        differences = wins.astype(np.int64) - losses
        groups = {task: differences[places] for task, places in scores.by_task()}
        figures, other_figures = accuracies(scores), accuracies(other)
        tasks = {
            task: _row(figures["tasks"][task], other_figures["tasks"][task], [of_task])
            for task, of_task in groups.items()
        }
        suites[suite] = _row(figures, other_figures, list(groups.values())) | {"tasks": tasks}
    return {"first": str(first), "second": str(second), "suites": suites}


def compare_held_out(first: Path, second: Path) -> dict[str, Any]:
    """The difference of two models' cross-entropies on the same windows; below 0 the first is better.

    The interval is the percentile bootstrap over windows of the differences, so what is hard in a window for both
    cancels. About 1 s for 40,000 windows.

    Args:
        first: a JSON file of `measure_held_out`.
        second: another.

    Returns:
        ``{"difference", "interval", "windows"}``, in nats per token.

    Raises:
        UserError: if a file has no losses by window, or the two are not of the same windows.
    """
    losses = [read_window_losses(path) for path in (first, second)]
    about = [
        {key: result.get(key) for key in ("corpus", "length", "at_most", "windows")}
        for path in (first, second)
        for result in read_results(path)
        if result["suite"] == "held_out"
    ]
    refuse_difference(f"{second}", about[0], about[1], "compare models on the same windows")
    differences = losses[0] - losses[1]
    interval = bootstrap_interval(differences, resamples=_RESAMPLES)
    return {"difference": float(differences.mean()), "interval": list(interval), "windows": len(differences)}


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print a table for each suite, the suite as a whole in its last row."""
    for suite, result in comparison["suites"].items():
        table = Table("task", title=f"{suite}: first {comparison['first']}, second {comparison['second']}")
        for heading in ("n", "first", "second", "difference", "95 % interval", "only first", "only second", "p"):
            table.add_column(heading, justify="right")
        for task, row in result["tasks"].items():
            table.add_row(task, *_cells(row))
        table.add_section()
        table.add_row("all", *_cells(result))
        console.print(table)


def write_comparison(out: Path, comparison: dict[str, Any]) -> None:
    """Write a comparison as JSON.

    Raises:
        UserError: if it cannot be written.
    """
    with writing(out):
        write_record(out, comparison)


def _in_order_of(scores: PairScores, other: PairScores, first: Path, second: Path) -> PairScores:
    """The other model's scores in the order of the first's pairs.

    Raises:
        UserError: for a pair that only one of them has, or one of them has twice.
    """
    keys, other_keys = _keys(scores, first), _keys(other, second)
    for key in [*keys, *other_keys]:
        if key not in other_keys or key not in keys:
            has, lacks = (first, second) if key in keys else (second, first)
            raise UserError(
                f"{has} has pair {key[1]} of {scores.suite} task {key[0]}, but {lacks} has not ({len(keys)} and "
                f"{len(other_keys)} pairs); compare models on the same data"
            )
    order = np.array([other_keys[key] for key in keys])
    return PairScores(other.suite, other.tasks[order], other.indices[order], other.good[order], other.bad[order])


def _keys(scores: PairScores, path: Path) -> dict[tuple[str, int], int]:
    pairs = zip(scores.tasks.tolist(), scores.indices.tolist(), strict=True)
    keys = {pair: place for place, pair in enumerate(pairs)}
    if len(keys) < len(scores.tasks):
        raise UserError(f"{path} has {len(scores.tasks)} scores of {len(keys)} pairs of {scores.suite}; measure again")
    return keys


def _row(figures: dict[str, Any], other: dict[str, Any], differences: list[Any]) -> dict[str, Any]:
    first_alone = sum(int((task == 1).sum()) for task in differences)
    second_alone = sum(int((task == -1).sum()) for task in differences)
    return {
        "n": figures["n"],
        "first": figures["accuracy"],
        "second": other["accuracy"],
        "difference": figures["accuracy"] - other["accuracy"],
        "interval": list(difference_interval(differences)),
        "first_alone": first_alone,
        "second_alone": second_alone,
        "p_value": mcnemar_p_value(first_alone, second_alone),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    return [
        f"{row['n']:,}",
        f"{row['first']:.4f}",
        f"{row['second']:.4f}",
        f"{row['difference']:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{row['first_alone']:,}",
        f"{row['second_alone']:,}",
        f"{row['p_value']:.2g}",
    ]
