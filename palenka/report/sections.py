"""The sections of the page that depend on its data: tiles at the top, learning curves, prompts and costs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from palenka.ground.quantities import extent
from palenka.report.cache_card import CacheCard
from palenka.report.costs import BreakEven, break_even
from palenka.report.figures import (
    Captioned,
    Styles,
    cost_figures,
    learning_figures,
    ratio_figures,
    term_figures,
)
from palenka.report.finding import control_for
from palenka.report.models import Model
from palenka.report.names import distinct_names
from palenka.report.sources import Sources
from palenka.report.texts import LossBasis, name_texts


class CostSection(NamedTuple):
    """A study's costs; without break-even and verdict if captures or students are missing."""

    name: str
    break_even: BreakEven | None
    verdict: str
    figures: list[Captioned]


class TextSection(NamedTuple):
    """The logs of runs with the same corpus, tokenizer and windows; charts never mix others.

    Attributes:
        name: of their text.
        models: that read it.
        learning: charts of their losses.
        terms: charts of the students' distillation terms.
        ratios: charts of the terms' gradients.
    """

    name: str
    models: list[Model]
    learning: list[Captioned]
    terms: list[Captioned]
    ratios: list[Captioned]

    @property
    def students(self) -> list[Model]:
        """The models trained with teachers."""
        return [model for model in self.models if model.role == "student"]


class PromptSection(NamedTuple):
    """The models' continuations of a prompt: for each the added text."""

    prompt: str
    how: str
    texts: list[tuple[Model, str]]


class Tile(NamedTuple):
    """A number at the top of the page."""

    label: str
    value: str
    note: str


def text_sections(models: Sequence[Model], styles: Styles) -> list[TextSection]:
    """A section for each text, the most read first."""
    names = name_texts(model.run for model in models if model.run)
    sections = []
    for text, name in names.items():
        here = [model for model in models if model.run and LossBasis.of(model.run) == text]
        students = [model for model in here if model.role == "student"]
        controls = [model for model in here if model.role == "control"]
        control = control_for(students[0], controls) if students else next(iter(controls), None)
        learning = learning_figures(here, control, styles)
        sections.append(
            TextSection(name, here, learning, term_figures(students, styles), ratio_figures(students, styles))
        )
    return sections


def prompt_sections(models: Sequence[Model], sources: Sources) -> list[PromptSection]:
    """A section for every prompt and way of sampling, with each model's first sample."""
    sections: dict[tuple[str, str], dict[str, tuple[Model, str]]] = {}
    for samples in sources.samples:
        drawing = samples.drawing
        how = f"{drawing.tokens} tokens at most, temperature {drawing.temperature:g}, top p {drawing.top_p:g}"
        for model in (model for model in models if model.weights == samples.weights):
            for sample in samples.samples:
                # Some tokenizers put a space before a text's first word.
                added = sample.text.strip().removeprefix(sample.prompt.strip())
                shown = sections.setdefault((sample.prompt, f"{how}, seed {drawing.seed}"), {})
                shown.setdefault(model.name, (model, added))
    order = [model.name for model in models]
    return [
        PromptSection(prompt, how, sorted(shown.values(), key=lambda pair: order.index(pair[0].name)))
        for (prompt, how), shown in sections.items()
    ]


def cost_sections(sources: Sources) -> list[CostSection]:
    """A section for every study."""
    names = distinct_names(sources.studies)
    sections = []
    for study, results in sources.studies.items():
        costs = break_even(study, sources)
        figures = cost_figures(results.seconds, costs)
        sections.append(CostSection(names[study], costs, _verdict(costs) if costs else "", figures))
    return sections


def tiles(models: Sequence[Model], cards: Sequence[CacheCard], costs: Sequence[CostSection]) -> list[Tile]:
    """The numbers at the top: of models, caches and costs."""
    shown = []
    if models:
        roles = [model.role for model in models]
        counts = [(roles.count(role), role) for role in dict.fromkeys(roles)]
        note = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for count, role in counts)
        shown.append(Tile("models", str(len(models)), note))
    if captured := [card for card in cards if card.tokens]:
        sizes = [card.bytes_per_token() for card in captured]
        masses = [next(iter(card.kept_mass.items())) for card in captured]
        note = f"at T = {' and '.join(f'{t:g}' for t in sorted({temperature for temperature, _ in masses}))}"
        shown.append(Tile("bytes per token", extent(sizes, 1), ", ".join(card.name for card in captured)))
        shown.append(Tile("mass of the kept tokens", extent([mass for _, mass in masses], 2), note))
    known = [(section.name, section.break_even) for section in costs if section.break_even]
    for name, found in known:
        of = f", {name}" if len(known) > 1 else ""
        shown.append(Tile(f"break-even students{of}", f"{found.students_needed:.2f}", "caches against live teachers"))
    return shown


def _verdict(costs: BreakEven) -> str:
    first = math.floor(costs.students_needed) + 1
    once, each = (f"{seconds:,.0f}\N{NO-BREAK SPACE}s" for seconds in (costs.capture_seconds, costs.live_seconds))
    return (
        f"Caches are cheaper than live teachers from student {first} on: capturing takes {once} once, live teachers "
        f"{each} for every student, so both cost the same at {costs.students_needed:.2f} students."
    )
