"""Tables of results: on the terminal, and as markdown, CSV and LaTeX with the published rows beside ours.

`palenka eval export FILE.json ... --format latex --out table.tex`
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from palenka.eval.results import read_results, writing
from palenka.ground.errors import UserError
from palenka.ground.files import write_whole

TableFormat = Literal["markdown", "csv", "latex"]


class Figure(NamedTuple):
    """A measure and its standard error, where that is known."""

    value: float
    error: float | None = None


class Row(NamedTuple):
    """A line of a table: a model, what its figures are from, and its figures by column."""

    model: str
    source: str
    figures: Mapping[str, Figure]


_COLUMNS = {
    "blimp_supplement": "BLiMP supplement",
    "blimp_filtered": "BLiMP filtered",
    "ewok_filtered": "EWoK filtered",
}
"""Of every table, in the order of the published one."""
_FURTHER_COLUMNS = {"blimp": "BLiMP", "minimal_pairs": "minimal pairs", "held_out": "held-out nats per token"}
"""Of tables with a model that has them."""


def _published(model: str, *figures: tuple[float, float | None]) -> Row:
    named = zip(_COLUMNS, (Figure(*figure) for figure in figures), strict=True)
    return Row(model, "published, babylm-2024", dict(named))


PUBLISHED = (
    _published("BabyLlama1-58M", (0.581, 0.0054), (0.676, 0.0016), (0.501, 0.0057)),
    _published("DistilledGPT-44M", (0.588, 0.0053), (0.658, 0.0016), (0.500, 0.0057)),
    _published("GPT2-44M", (0.591, 0.0056), (0.633, 0.0017), (0.501, 0.0057)),
    _published("GPT2-705M", (0.574, 0.0058), (0.657, 0.0017), (0.501, 0.0057)),
    _published("GPT2-small-97M", (0.563, 0.0058), (0.662, 0.0017), (0.506, 0.0057)),
    _published("Llama-360M", (0.610, 0.0055), (0.654, 0.0017), (0.499, 0.0057)),
    _published("Llama-60M", (0.567, 0.0057), (0.637, 0.0017), (0.499, 0.0057)),
    _published("PalenkaLlama1-58M L0.1-H0.1", (0.596, None), (0.694, None), (0.500, None)),
    _published("PalenkaLlama1-58M L0.1-H0.3", (0.599, None), (0.693, None), (0.499, None)),
    _published("PalenkaLlama1-58M L0.1-H0.5", (0.606, None), (0.694, None), (0.503, None)),
)
"""PalenkaLM's table (BabyLM 2025); accuracies and standard errors as printed there."""


def export(files: Sequence[str], form: TableFormat, published: bool) -> str:
    """A table of results in a form, its last line ended.

    Args:
        files: ``FILE.json`` or ``NAME=FILE.json``; those of one name share a row.
        form: of the table.
        published: whether the published rows stand above.

    Raises:
        UserError: if a file holds no results, or two of one name disagree.
    """
    rows = [*(PUBLISHED if published else ()), *_rows_of(files)]
    if not rows:
        raise UserError("there are no results to export; give FILE.json, or leave the published rows in")
    columns = _COLUMNS | {
        key: name for key, name in _FURTHER_COLUMNS.items() if any(key in row.figures for row in rows)
    }
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[form](rows, columns)


def write_table(out: Path, table: str) -> None:
    """Write a table, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with writing(out):
        write_whole(out, table)


def print_results(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a model's results: for each suite of pairs its tasks and itself, for held-out text the three figures."""
    for result in results:
        if result["suite"] == "held_out":
            console.print(_held_out_sentence(result), markup=False, highlight=False, soft_wrap=True)
            continue
        console.print(_suite_table(result))
        ties = f"{result['ties']:,} ties; accuracy with ties as one half {result['tie_half_accuracy']:.4f}"
        if agreement := result.get("agreement"):
            ties += (
                f"; {result['precision']} decides as float32 on {agreement['decisions']:.4f} of {agreement['pairs']} "
                f"pairs (scores differ by at most {agreement['largest_difference']:.2g} nats)"
            )
        console.print(ties, markup=False, highlight=False, soft_wrap=True)


def _suite_table(result: Mapping[str, Any]) -> Table:
    table = Table("task", title=f"{result['suite']}, {result['protocol']}, {result['precision']}: {result['name']}")
    for heading in ("accuracy", "standard error", "n"):
        table.add_column(heading, justify="right")
    for task, row in [*result["tasks"].items(), ("mean of tasks", result)]:
        if row is result:
            table.add_section()
        table.add_row(task, f"{row['accuracy']:.4f}", f"{row['stderr']:.4f}", f"{row['n']:,}")
    return table


def _held_out_sentence(result: Mapping[str, Any]) -> str:
    (low, high), (low_word, high_word) = result["interval"], result["per_word_interval"]
    low_byte, high_byte = result["per_byte_interval"]
    return (
        f"held-out cross-entropy {result['cross_entropy']:.4f} nats per token (95 % interval {low:.4f} to {high:.4f}, "
        f"{result['windows']:,} windows), {result['per_word']:.4f} per word ({low_word:.4f} to {high_word:.4f}), "
        f"{result['per_byte']:.4f} per byte ({low_byte:.4f} to {high_byte:.4f})"
    )


def _rows_of(files: Sequence[str]) -> list[Row]:
    """A row for each model, in the order of the files."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for given in files:
        name, _, file = given.rpartition("=")
        for result in read_results(Path(file)):
            model = name or str(result.get("name", Path(file).stem))
            suites = models.setdefault(model, {})
            for other in suites.values():
                if (difference := _difference(result, other)) is not None:
                    raise UserError(f"{file} has {difference} of {model} than a file before it; give NAME={file}")
            suites[result["suite"]] = result
    return [
        Row(model, _source(suites), {suite: _figure(result) for suite, result in suites.items()})
        for model, suites in models.items()
    ]


def _difference(result: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why two results cannot stand in one row, or None."""
    if result["suite"] == other["suite"]:
        return f"another {result['suite']}"
    if result["model"]["weights"] != other["model"]["weights"]:
        return "other weights"
    for key in ("protocol", "precision"):
        if key in result and key in other and result[key] != other[key]:
            return f"another {key}"
    return None


def _source(suites: Mapping[str, Mapping[str, Any]]) -> str:
    of_pairs = [result for result in suites.values() if "protocol" in result]
    said = [of_pairs[0]["protocol"], of_pairs[0]["precision"]] if of_pairs else []
    return ", ".join(["ours", *(word for word in said if word != "float32")])


def _figure(result: Mapping[str, Any]) -> Figure:
    if result["suite"] == "held_out":
        return Figure(result["cross_entropy"])
    return Figure(result["accuracy"], result["stderr"])


def _markdown(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    lines = [["model", *columns.values(), "source"], ["---"] * (len(columns) + 2)]
    lines += [[row.model, *_cells(row, columns, "±", "–"), row.source] for row in rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _csv(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *(name for key in columns for name in (key, f"{key}_stderr")), "source"])
    for row in rows:
        figures = [row.figures.get(key) for key in columns]
        cells = [cell for figure in figures for cell in (figure if figure is not None else ("", ""))]
        writer.writerow([row.model, *("" if cell is None else cell for cell in cells), row.source])
    return text.getvalue()


def _latex(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}l}}", r"\hline"]
    lines += [_latex_line(["model", *columns.values(), "source"]), r"\hline"]
    lines += [_latex_line([row.model, *_cells(row, columns, r"$\pm$", "--"), row.source]) for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cell.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&") for cell in cells) + r" \\"


def _cells(row: Row, columns: Mapping[str, str], plus_minus: str, nothing: str) -> list[str]:
    """Figures as the published table has them: three digits, four of the standard error."""
    cells = []
    for key in columns:
        figure = row.figures.get(key)
        if figure is None:
            cells.append(nothing)
        else:
            error = "" if figure.error is None else f" {plus_minus} {figure.error:.4f}"
            cells.append(f"{figure.value:.3f}{error}")
    return cells
