"""The page: everything computed and drawn, filled into report.html.j2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from palenka.report import sections
from palenka.report.figures import measure_figure, phenomena_figure
from palenka.report.finding import accuracy_of, cross_entropy_of, find
from palenka.report.grid.sections import grid_sections, grid_tiles
from palenka.report.models import Measure, Model, distinct_names, join_models, measures_of
from palenka.report.pairs import pair_suites
from palenka.report.sources import Sources
from palenka.report.styles import style_models

GENERATOR = "palenka report"
"""What a page says of its origin; a file that does not say so is never replaced."""
STUDENTS_SHOWN = (1, 5, 25)
_NO_BREAK = "\N{NO-BREAK SPACE}"


def render(sources: Sources, title: str) -> str:
    """The report as one HTML page; the same sources give the same bytes."""
    environment = Environment(
        loader=PackageLoader("palenka.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"recipe": recipe, "shape": shape}
    models = join_models(sources)
    content = {"generator": GENERATOR, "title": title, "sources": sources, "students_shown": STUDENTS_SHOWN}
    content |= _of_models(models) | _of_stages(models, sources) | _of_grids(sources)
    page = environment.get_template("report.html.j2").render(content)
    return page if page.endswith("\n") else f"{page}\n"


def title_of(directories: Sequence[Path]) -> str:
    """The names of the folders that a report is about."""
    return ", ".join(directory.resolve().name for directory in directories)


def shape(model: Model) -> str:
    """A run's architecture as layers × width; empty for models without a run."""
    if model.run is None:
        return ""
    settings = model.run.settings.model
    size = f"{settings.get('num_hidden_layers', '?')} × {settings.get('hidden_size', '?')}"
    return f"{settings.get('architecture', '')} {size}"


def recipe(model: Model) -> str:
    """A run's objective, and its teachers with their weights; empty for models that were trained without teachers."""
    if model.run is None or not model.run.settings.teachers:
        return ""
    settings = model.run.settings
    numbers = {name: value for name, value in settings.objective.items() if _is_number(value)}
    temperature = numbers.pop("temperature", None)
    terms = " + ".join(f"{value:g}{_NO_BREAK}{name}" for name, value in numbers.items() if value)
    teachers = ", ".join(f"{teacher.get('weight', 1)}{_NO_BREAK}{name}" for name, teacher in settings.teachers.items())
    at = "" if temperature is None else f", T{_NO_BREAK}={_NO_BREAK}{temperature:g}"
    return f"{terms}{at}; {teachers}"


def _of_models(models: Sequence[Model]) -> dict[str, Any]:
    """What the page says of the models."""
    styles = style_models(models)
    likelihoods = [m for m in measures_of(models) if any(cross_entropy_of(model, m) for model in models)]
    accuracies = [m for m in measures_of(models) if any(accuracy_of(model, m) for model in models)]
    measures = [*likelihoods, *accuracies]
    students = [model for model in models if model.role == "student"]
    return {
        "finding": find(models),
        "models": models,
        "students": students,
        "styles": styles,
        "crowd": sum(not style.is_named for style in styles.values()),
        "likelihoods": likelihoods,
        "accuracies": accuracies,
        "units": {
            measure: [unit for unit in ("word", "byte") if _has(models, measure, unit)] for measure in likelihoods
        },
        "conditions": {measure: measure.condition(measures) for measure in measures},
        "best": {(name, measure) for measure in measures if (name := _best(models, measure))},
        "measured": [(measure, measure_figure(models, measure, styles)) for measure in measures],
        "learning": sections.learning_figures(models, likelihoods, styles),
        "suites": [(suite, phenomena_figure(suite, styles)) for suite in pair_suites(models)],
        "terms": sections.term_figures(students, styles),
        "ratios": sections.ratio_figures(students, styles),
    }


def _of_stages(models: Sequence[Model], sources: Sources) -> dict[str, Any]:
    """What the page says of the caches and the costs."""
    caches = sections.cache_sections(sources)
    costs = sections.cost_sections(sources)
    return {
        "caches": caches,
        "arrays": list(
            dict.fromkeys(array for section in caches if section.card for array in section.card.bytes_by_array)
        ),
        "temperatures": sorted({t for section in caches for t in section.manifest.logits.temperatures}),
        "has_errors": any(section.card and section.card.hidden_errors for section in caches),
        "costs": costs,
        "tiles": [*grid_tiles(sources), *sections.tiles(models, caches, costs)],
    }


def _of_grids(sources: Sources) -> dict[str, Any]:
    """What the page says of the grids; the first one's finding is the page's, unless it is about a study too."""
    grids = grid_sections(sources)
    unranked = distinct_names(sources.unranked).values()
    finding = {"finding": grids[0].finding} if grids and not sources.studies else {}
    return {"grids": grids, "unranked": list(unranked), **finding}


def _best(models: Sequence[Model], measure: Measure) -> str | None:
    """The student or control that is best by a measure, if there are several to choose from."""
    losses: dict[str, float] = {}
    for model in models:
        loss, accuracy = cross_entropy_of(model, measure), accuracy_of(model, measure)
        if model.role in ("student", "control") and (loss or accuracy):
            losses[model.name] = loss.value if loss else -accuracy.value if accuracy else 0.0
    return min(losses, key=lambda name: losses[name]) if len(losses) > 1 else None


def _has(models: Sequence[Model], measure: Measure, unit: str) -> bool:
    """Whether the cross-entropy of any model is known per word or per byte, too."""
    found = [model.results[measure] for model in models if measure in model.results]
    return any((result.per_word if unit == "word" else result.per_byte) is not None for result in found)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
