"""Tables of results: on the terminal, and as markdown, CSV and LaTeX with the published rows beside ours.

`palenka eval export FILE.json ... --format latex --out table.tex`
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Column

from palenka.eval.overall import overall
from palenka.eval.results import Results, SuiteResult, read_results, writing
from palenka.eval.suite import Figure, Score
from palenka.eval.suites import SUITES
from palenka.ground.console import plain_table
from palenka.ground.errors import UserError
from palenka.ground.files import require_own, write_whole

TableFormat = Literal["markdown", "csv", "latex"]


class Row(NamedTuple):
    """A line of a table: a model, the source of its figures, and its main figures by suite."""

    model: str
    source: str
    figures: Mapping[str, Score]


_HEADS = [
    re.compile(head)
    for head in (
        r"\| model \|.*\| source \|\n",
        r"model,.*,source\n",
        r"\\begin\{tabular\}\{lr*l\}\n\\hline\nmodel & .*source ",
    )
]
"""The beginning of a table in each form."""
_PUBLISHED_SUITES = ("blimp_supplement", "blimp_filtered", "ewok_filtered")
"""Columns of every table, in the order of the published one."""


def _published(model: str, *figures: tuple[float, float | None]) -> Row:
    scores = [Score(value=value, stderr=stderr) for value, stderr in figures]
    return Row(model, "published, babylm-2024", dict(zip(_PUBLISHED_SUITES, scores, strict=True)))


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


def export(files: Sequence[str], form: TableFormat, published: bool, with_overall: bool = False) -> str:
    """A table of results in a form, ending in a newline.

    Args:
        files: ``FILE.json`` or ``NAME=FILE.json``; those of one name share a row.
        form: of the table.
        published: whether to put the published rows above.
        with_overall: whether our rows end with the overall figure of the official table of 2026.

    Raises:
        UserError: if a file has no results, or two of one name disagree.
    """
    models = _by_model(files)
    rows = [*(PUBLISHED if published else ()), *(_row(model, suites, with_overall) for model, suites in models.items())]
    if not rows:
        raise UserError("there are no results to export; give FILE.json, or leave the published rows in")
    columns = {name: SUITES[name].title for name in _PUBLISHED_SUITES}
    columns |= {name: result.heading for suites in models.values() for name, (_, result) in suites.items()}
    if with_overall:
        columns["overall"] = "overall"
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[form](rows, columns)


def write_table(out: Path, table: str) -> None:
    """Write a table, atomically.

    Raises:
        UserError: if anything but a table is there, or it cannot be written.
    """
    require_table(out)
    with writing(out):
        write_whole(out, table)


def require_table(out: Path) -> None:
    """Refuse to overwrite anything but a table of ours, such as the results in it.

    Raises:
        UserError: if something else is there.
    """
    require_own(out, lambda text: any(head.match(text) for head in _HEADS), "table of `palenka eval export`")


def print_results(results: Results, console: Console) -> None:
    """Print a table for each suite: its tasks, figures and facts."""
    for result in results.suites:
        under = "".join(f", {name} {value}" for name, value in result.conditions.items())
        columns = [Column(name, justify="right", no_wrap=True) for name in ("value", "n")]
        title = f"{result.heading}{under}: {results.name}"
        suite = Column(result.suite, overflow="fold")
        table = plain_table(suite, *columns, title=title)
        for task, score in result.main.tasks.items():
            table.add_row(task, str(score), f"{score.n:,}")
        table.add_section()
        for name, figure in result.figures.items():
            table.add_row(f"{name.replace('_', ' ')}, {figure.unit or 'all'}", str(figure), f"{figure.n:,}")
        console.print(table)
        if facts := ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.facts.items()):
            console.print(facts, markup=False, highlight=False, soft_wrap=True)


Measures = dict[str, tuple[Results, SuiteResult]]
"""The results of a model by suite, each with the results of its file."""


def _by_model(files: Sequence[str]) -> dict[str, Measures]:
    """The results of each model, in the order of the files.

    Raises:
        UserError: if two of one name disagree.
    """
    models: dict[str, Measures] = {}
    for given in files:
        name, _, file = given.rpartition("=")
        results = read_results(Path(file))
        model = name or results.name
        suites = models.setdefault(model, {})
        for result in results.suites:
            for other in suites.values():
                if (difference := _difference((results, result), other)) is not None:
                    raise UserError(f"{file} has {difference} of {model} than a file before it; give NAME={file}")
            suites[result.suite] = results, result
    return models


def _difference(ours: tuple[Results, SuiteResult], others: tuple[Results, SuiteResult]) -> str | None:
    """The reason why two results cannot share a row, or None."""
    (file, result), (other_file, other) = ours, others
    if result.suite == other.suite:
        return f"another {result.suite}"
    if file.model.weights != other_file.model.weights:
        return "other weights"
    shared = [key for key in result.conditions if key in other.conditions]
    return next((f"another {key}" for key in shared if result.conditions[key] != other.conditions[key]), None)


def _row(model: str, suites: Measures, with_overall: bool) -> Row:
    conditions = {key: value for _, result in suites.values() for key, value in result.conditions.items()}
    said = [conditions.get("protocol"), conditions.get("precision")]
    source = ", ".join(["ours", *(str(word) for word in said if word not in (None, "float32"))])
    figures = {name: result.main for name, (_, result) in suites.items()}
    total = {"overall": overall(figures)} if with_overall else {}
    return Row(model, source, {name: _quoted(figure) for name, figure in figures.items()} | total)


def _quoted(figure: Figure) -> Score:
    """A figure with the kind of standard error of the published rows."""
    stderr = figure.stderr if figure.pooled_stderr is None else figure.pooled_stderr
    return Score(value=figure.value, stderr=stderr)


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
        cells = [cell for each in figures for cell in ((each.value, each.stderr) if each else (None, None))]
        writer.writerow([row.model, *("" if cell is None else cell for cell in cells), row.source])
    return text.getvalue()


def _latex(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}l}}", r"\hline"]
    lines += [_latex_line(["model", *columns.values(), "source"]), r"\hline"]
    lines += [_latex_line([row.model, *_cells(row, columns, "±", "–"), row.source]) for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


_LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
}
"""LaTeX's form of its special characters, and of ours that old fonts lack."""


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"


def _cells(row: Row, columns: Mapping[str, str], plus_minus: str, nothing: str) -> list[str]:
    """Figures as in the published table: three digits, four for the standard error."""
    cells = []
    for key in columns:
        figure = row.figures.get(key)
        if figure is None:
            cells.append(nothing)
        else:
            error = "" if figure.stderr is None else f" {plus_minus} {figure.stderr:.4f}"
            cells.append(f"{figure.value:.3f}{error}")
    return cells
