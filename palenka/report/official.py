"""The official table of 2026: nine columns and their mean, for every model with some of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palenka.eval.overall import COLUMNS, columns_of, overall
from palenka.eval.suites import SUITES
from palenka.report.models import Model
from palenka.report.results import Estimate, Measure

_PROTOCOLS = ("", "babylm-2025")
"""The protocols of the table; the pairs of 2024 are scored differently."""


@dataclass(frozen=True)
class OfficialRow:
    """A model's columns in %, and the mean over all nine, with missing ones as 0."""

    model: Model
    columns: Mapping[str, Estimate]
    overall: Estimate


def official_rows(models: Sequence[Model]) -> list[OfficialRow]:
    """A row for every model with at least two columns."""
    measures = _measures(models)
    rows = []
    for model in models:
        figures = {each.suite: model.results[each].main for each in measures if each in model.results}
        if len(columns := columns_of(figures)) > 1:
            shown = {column: Estimate.of(score, "%") for column, score in columns.items()}
            rows.append(OfficialRow(model, shown, Estimate.of(overall(figures), "%")))
    return rows


def shown_columns(rows: Sequence[OfficialRow]) -> list[str]:
    """The columns that any of the models has, in order."""
    return [column for column in COLUMNS if any(column in row.columns for row in rows)]


def _measures(models: Sequence[Model]) -> list[Measure]:
    """One measure for each suite of the table: of the newest version, the one with most items.

    So a revision's fast subset never appears here.
    """
    sizes: dict[Measure, int] = {}
    for model in models:
        for measure, result in model.results.items():
            is_official = measure.suite in SUITES and SUITES[measure.suite].column
            if is_official and measure.protocol in _PROTOCOLS and "limit" not in dict(measure.conditions):
                sizes[measure] = result.main.n or 0
    largest: dict[str, Measure] = {}
    for measure in sorted(sizes, key=lambda each: (sizes[each], each.version)):
        largest[measure.suite] = measure
    return [*largest.values()]
