"""The page: everything computed and drawn, filled into report.html.j2."""

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from palenka.eval.overall import COLUMNS
from palenka.report import figures
from palenka.report.cache_card import make_card
from palenka.report.colours import style_sheet, themed
from palenka.report.finding import find
from palenka.report.grid.finding import change, unsigned
from palenka.report.grid.sections import grid_sections, grid_tiles
from palenka.report.models import Model, best, join_models, measures_of, recipe
from palenka.report.names import distinct_names
from palenka.report.official import official_rows, shown_columns
from palenka.report.pairs import pair_suites
from palenka.report.results import Measure
from palenka.report.sections import cost_sections, prompt_sections, text_sections, tiles
from palenka.report.sources import Sources
from palenka.report.styles import style_models
from palenka.report.write import GENERATOR

STUDENTS_SHOWN = (1, 5, 25)


def render(sources: Sources, title: str) -> str:
    """The report as one HTML page; the same sources give the same bytes."""
    models = join_models(sources)
    content = {"generator": GENERATOR, "title": title, "sources": sources, "students_shown": STUDENTS_SHOWN}
    content |= _looks() | _of_models(models, sources) | _of_stages(models, sources) | _of_grids(sources)
    page = _environment().get_template("report.html.j2").render(content)
    return page if page.endswith("\n") else f"{page}\n"


@cache
def _environment() -> Environment:
    """The environment of the templates, which are compiled once."""
    environment = Environment(
        loader=PackageLoader("palenka.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"change": change, "recipe": recipe, "themed": themed, "unsigned": unsigned}
    return environment


def _looks() -> dict[str, Any]:
    """The page's colours and its script; a policy in the page forbids any other script."""
    script = importlib.resources.files("palenka.report").joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Both are ours, without data of a run.
    return {
        "colours": Markup(style_sheet()),  # noqa: S704
        "script": Markup(script),  # noqa: S704
        "script_hash": f"sha256-{digest}",
    }


def _of_models(models: Sequence[Model], sources: Sources) -> dict[str, Any]:
    """The page's data about the models."""
    styles = style_models(models)
    measures = sorted(measures_of(models), key=lambda measure: not measure.is_held_out)
    official = official_rows(models)
    return {
        "finding": find(models),
        "models": models,
        "styles": styles,
        "crowd": sum(not style.is_named for style in styles.values()),
        "measures": measures,
        "further": {measure: _further(models, measure) for measure in measures},
        "conditions": {measure: measure.condition(measures) for measure in measures},
        "best": {(name, measure) for measure in measures if (name := _best(models, measure))},
        "measured": [(measure, figures.measure_figure(models, measure, styles)) for measure in measures],
        "suites": [(suite, figures.pairs_figure(suite, styles)) for suite in pair_suites(models)],
        "official": official,
        "official_columns": (columns := shown_columns(official)),
        "official_total": len(COLUMNS),
        "official_missing": len(COLUMNS) - len(columns),
        "official_figure": figures.overall_figure(official, styles) if len(official) > 1 else None,
        "texts": (texts := text_sections(models, styles)),
        "curves": sources.curves,
        "revisions": figures.revision_figures(sources.curves, models, styles),
        "prompts": prompt_sections(models, sources),
        "text_of": {model.name: text.name for text in texts for model in text.models},
        "lacking": _lacking(sources),
    }


def _lacking(sources: Sources) -> list[tuple[str, str]]:
    """The names of files that are gone or not as they were written, each with that of the file that tells of it."""
    names = distinct_names([*sources.lacking, *sources.lacking.values()])
    return [(names[path], names[other]) for path, other in sources.lacking.items()]


def _of_stages(models: Sequence[Model], sources: Sources) -> dict[str, Any]:
    """The page's data about the caches and the costs."""
    names = distinct_names(cache.directory for cache in sources.caches)
    cards = [make_card(names[cache.directory], cache) for cache in sources.caches]
    costs = cost_sections(sources)
    return {
        "caches": [(card, figures.cache_figures(card)) for card in cards],
        "arrays": list(dict.fromkeys(array for card in cards for array in card.bytes_by_array)),
        "temperatures": sorted({temperature for card in cards for temperature in card.logits.temperatures}),
        "has_errors": any(card.hidden_errors for card in cards),
        "costs": costs,
        "tiles": [*grid_tiles(sources), *tiles(models, cards, costs)],
    }


def _of_grids(sources: Sources) -> dict[str, Any]:
    """The page's data about the grids; the first grid's finding is the page's, unless there is a study too."""
    grids = grid_sections(sources)
    finding = {"finding": grids[0].finding} if grids and not sources.studies else {}
    return {"grids": grids, "unranked": list(distinct_names(sources.unranked).values()), **finding}


def _best(models: Sequence[Model], measure: Measure) -> str | None:
    """The best student or control by a measure, if there are several."""
    candidates = [model for model in models if model.role in ("student", "control") and model.estimate(measure)]
    found = best(candidates, measure)
    return found.name if found and len(candidates) > 1 else None


def _further(models: Sequence[Model], measure: Measure) -> dict[str, str]:
    """The units of a suite's further figures, by name."""
    figures = [item for model in models if measure in model.results for item in model.results[measure].figures.items()]
    main = figures[0][0]
    return {name: figure.unit for name, figure in figures if name != main}
