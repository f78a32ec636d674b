"""The parts of the page: each chart with its caption, and the few words that depend on the numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from palenka.data.signals.manifest import CacheManifest
from palenka.report import figures
from palenka.report.cache_card import CacheCard, make_card
from palenka.report.costs import BreakEven, break_even
from palenka.report.finding import control_for, cross_entropy_of
from palenka.report.models import Measure, Model, distinct_names
from palenka.report.sources import Sources
from palenka.report.styles import Style

Captioned = tuple[str, Markup]
"""What a chart shows, in a sentence, and the chart."""


@dataclass(frozen=True)
class CacheSection:
    """A cache: no card while nothing is captured."""

    name: str
    manifest: CacheManifest
    card: CacheCard | None
    figures: tuple[Captioned, ...]


@dataclass(frozen=True)
class CostSection:
    """A study's costs: no break-even, and no verdict, where captures or students are missing."""

    name: str
    break_even: BreakEven | None
    verdict: str
    figures: tuple[Captioned, ...]


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page."""

    label: str
    value: str
    note: str


def learning_figures(
    models: Sequence[Model], likelihoods: Sequence[Measure], styles: Mapping[str, Style]
) -> list[Captioned]:
    """Charts of what was learnt when."""
    drawn = [
        (
            "Training text, the mean since the last logged step; the first tenth may lie above the frame.",
            figures.training_figure(models, styles),
        ),
        ("Validation windows, measured now and then.", figures.validation_figure(models, styles)),
    ]
    if control := _control(models, likelihoods):
        caption = (
            f"Training text, less {control.name} at the same step: both read the same windows in the same order, so "
            "what is hard in them cancels. Below 0 the student is better."
        )
        drawn.append((caption, figures.difference_figure(models, control, styles)))
    return [(caption, figure) for caption, figure in drawn if figure is not None]


def term_figures(models: Sequence[Model], styles: Mapping[str, Style]) -> list[Captioned]:
    """A chart for every distillation term."""
    names = figures.term_names(models)
    return [(f"The term {name}, before its weight.", figures.term_figure(models, name, styles)) for name in names]


def ratio_figures(models: Sequence[Model], styles: Mapping[str, Style]) -> list[Captioned]:
    """A chart for every term's gradient ratio."""
    names = figures.ratio_names(models)
    return [
        (
            f"Gradient of {name.removeprefix(figures.RATIO)} over that of the hard term.",
            figures.term_figure(models, name, styles),
        )
        for name in names
    ]


def cache_sections(sources: Sources) -> list[CacheSection]:
    """A section for every cache."""
    names = distinct_names(cache.directory for cache in sources.caches)
    sections = []
    for cache in sources.caches:
        name = names[cache.directory]
        card = make_card(cache)
        sections.append(CacheSection(name, cache.manifest, card, _cache_figures(card, name) if card else ()))
    return sections


def cost_sections(sources: Sources) -> list[CostSection]:
    """A section for every study."""
    names = distinct_names(study.directory for study in sources.studies)
    sections = []
    for study in sources.studies:
        costs = break_even(study, sources)
        drawn: list[Captioned] = []
        if study.seconds:
            total = f"{sum(study.seconds.values()):,.0f} s in all"
            drawn.append((f"Seconds per stage, {total}.", figures.seconds_figure(study.seconds)))
        if costs:
            drawn.append(("Seconds of teachers by number of students.", figures.break_even_figure(costs)))
        sections.append(CostSection(names[study.directory], costs, _verdict(costs) if costs else "", tuple(drawn)))
    return sections


def tiles(models: Sequence[Model], caches: Sequence[CacheSection], costs: Sequence[CostSection]) -> list[Tile]:
    """The numbers at the top: what there is of models, caches and costs."""
    shown = []
    if models:
        roles = [model.role for model in models]
        counts = [(roles.count(role), role) for role in dict.fromkeys(roles)]
        note = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for count, role in counts)
        shown.append(Tile("models", str(len(models)), note))
    cards = {section.name: section.card for section in caches if section.card}
    if cards:
        sizes = [card.bytes_per_token() for card in cards.values()]
        masses = {name: next(iter(card.kept_mass.items())) for name, card in cards.items()}
        temperatures = sorted({temperature for temperature, _ in masses.values()})
        note = f"at T = {' and '.join(f'{temperature:g}' for temperature in temperatures)}"
        shown.append(Tile("bytes per token", _range(sizes, 1), ", ".join(cards)))
        shown.append(Tile("mass of the kept tokens", _range([mass for _, mass in masses.values()], 2), note))
    known = [(section.name, section.break_even) for section in costs if section.break_even]
    for name, found in known:
        of = f", {name}" if len(known) > 1 else ""
        shown.append(Tile(f"break-even students{of}", f"{found.students_needed:.2f}", "caches against live teachers"))
    return shown


def _control(models: Sequence[Model], likelihoods: Sequence[Measure]) -> Model | None:
    """The control that the page compares with; the same as the finding's where held-out text was measured."""
    students = [model for model in models if model.role == "student"]
    controls = [model for model in models if model.role == "control"]
    for measure in likelihoods:
        measured = [model for model in controls if cross_entropy_of(model, measure)]
        if students and measured:
            return control_for(students[0], measured, measure)
    return controls[0] if controls else None


def _cache_figures(card: CacheCard, name: str) -> tuple[Captioned, ...]:
    sample = f"{card.sampled_tokens:,} sampled tokens"
    means = ", ".join(f"{found.mean:.2f} at T = {t:g}" for t, found in card.entropy_histograms.items())
    drawn = [
        ("Bytes per token on disk, by array.", figures.bytes_figure(card, name)),
        (
            f"Mass of {card.cache.manifest.logits.summary()}; {sample}.",
            figures.mass_figure(card, name),
        ),
        (f"Entropy, a lower bound; mean {means}; {sample}.", figures.entropy_figure(card, name)),
    ]
    if card.hidden_errors:
        drawn.append(
            ("Stored hidden states: squared error over variance, by layer.", figures.errors_figure(card, name))
        )
    return tuple(drawn)


def _verdict(costs: BreakEven) -> str:
    first = math.floor(costs.students_needed) + 1
    once, each = (f"{seconds:,.0f}\N{NO-BREAK SPACE}s" for seconds in (costs.capture_seconds, costs.live_seconds))
    return (
        f"Caches are cheaper than live teachers from student {first} on: capturing takes {once} once, live teachers "
        f"{each} for every student, so both cost the same at {costs.students_needed:.2f} students."
    )


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
