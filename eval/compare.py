"""Two models on the same items: `palenka eval compare A.json B.json`. Each suite compares its own items."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Column

from palenka.eval.results import read_items, read_results, writing
from palenka.eval.suite import column
from palenka.eval.suites import SUITES
from palenka.ground.console import plain_table
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import require_own
from palenka.ground.records import load_json, write_record

if TYPE_CHECKING:
    import pyarrow as pa

_HEADINGS = ("first", "second", "difference", "95 % interval", "p", "n", "only first", "only second")
_LEFT_OUT, _WIDE = 3, 110
"""Number of last columns that are omitted on a console narrower than this."""

_REMEDY = "compare models on the same suites, conditions and data"


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The paired comparison of two models, by suite.

    Returns:
        ``{"first", "second", "suites": {suite: <row>}}``, with the rows of `eval.suite.Suite.compare` and in each
        ``"title"``, ``"unit"`` and ``"higher_is_better"``.

    Raises:
        UserError: if a file has no results, lacks its items, or the two do not have the same items under the same
            conditions.
    """
    return {"first": str(first), "second": str(second), "suites": _compared(first, second)}


def compare_suite(first: Path, second: Path, suite: str) -> dict[str, Any]:
    """The row of one suite that both files have, whatever else is in them; see `compare`."""
    return _compared(first, second, [suite])[suite]


def _compared(first: Path, second: Path, suites: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The row of each suite: of those named, or of all in the files, which must have the same suites."""
    ours, theirs = (read_results(path).by_suite for path in (first, second))
    if suites is None:
        refuse_difference(f"{second}", {"suites": sorted(ours)}, {"suites": sorted(theirs)}, _REMEDY)
        suites = list(ours)
    expected, found = ({name: of[name].request.as_plain() | {"data": ""} for name in suites} for of in (ours, theirs))
    refuse_difference(f"{second}", expected, found, _REMEDY)
    for name in suites:
        if ours[name].data != theirs[name].data:
            raise UserError(
                f"{first} and {second} were measured on other data of {name}, whose text is not the same; {_REMEDY}"
            )
    items, other_items = read_items(first), read_items(second)
    rows = {}
    for name in suites:
        matched = _in_order_of(items[name], other_items[name], name, first, second)
        main = ours[name].main
        about = {"title": ours[name].title, "unit": main.unit, "higher_is_better": main.higher_is_better}
        rows[name] = about | SUITES[name].compare(items[name], matched)
    return rows


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print a table for each suite, the whole suite in its last row, with counts on a wide console."""
    console.print(f"first {comparison['first']}, second {comparison['second']}", markup=False, soft_wrap=True)
    is_wide = console.width >= _WIDE
    for result in comparison["suites"].values():
        side = "higher" if result["higher_is_better"] else "lower"
        title = f"{result['title']}{', ' * bool(result['unit'])}{result['unit']}; {side} is better"
        table = plain_table(Column("task", overflow="fold"), title=title)
        for heading in _HEADINGS if is_wide else _HEADINGS[:-_LEFT_OUT]:
            table.add_column(heading, justify="right", no_wrap=True)
        for task, row in [*result.get("tasks", {}).items(), ("all", result)]:
            cells = _cells(row)
            # Names of files have no spaces at which they could be wrapped.
            table.add_row(task.replace("_", " "), *(cells if is_wide else cells[:-_LEFT_OUT]))
        console.print(table)


def write_comparison(out: Path, comparison: dict[str, Any]) -> None:
    """Write a comparison as JSON.

    Raises:
        UserError: if anything but a comparison is there, or it cannot be written.
    """
    require_comparison(out)
    with writing(out):
        write_record(out, comparison)


def require_comparison(out: Path) -> None:
    """Refuse to overwrite anything but a comparison, such as the compared results.

    Raises:
        UserError: if something else is there.
    """
    require_own(out, lambda text: set(load_json(text)) == {"first", "second", "suites"}, "comparison")


def _in_order_of(items: "pa.Table", other: "pa.Table", suite: str, first: Path, second: Path) -> "pa.Table":
    """The other model's items in the order of the first's.

    Raises:
        UserError: for an item that only one of them has, or that one of them has twice.
    """
    places, other_places = _places(items, suite, first), _places(other, suite, second)
    if different := places.keys() ^ other_places.keys():
        task, index = min(different)
        has, lacks = (first, second) if (task, index) in places else (second, first)
        raise UserError(
            f"{has} has item {index} of {suite} task {task}, but {lacks} has not ({len(places)} and "
            f"{len(other_places)} items); compare models on the same data"
        )
    return other.take(np.array([other_places[item] for item in places]))


def _places(items: "pa.Table", suite: str, path: Path) -> dict[tuple[str, int], int]:
    rows = zip(column(items, "task").tolist(), column(items, "index").tolist(), strict=True)
    places = {item: place for place, item in enumerate(rows)}
    if len(places) < len(items):
        raise UserError(f"{path} has {len(items)} rows of {len(places)} items of {suite}; measure again")
    return places


def _cells(row: dict[str, Any]) -> list[str]:
    interval, p_value = row["interval"], row.get("p_value")
    alone = [f"{row[key]:,}" if key in row else "–" for key in ("first_alone", "second_alone")]
    return [
        f"{row['first']:.4f}",
        f"{row['second']:.4f}",
        f"{row['difference']:+.4f}",
        f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "–",
        "–" if p_value is None else f"{p_value:.2g}",
        f"{row['n']:,}",
        *alone,
    ]
