"""One look for each model, the same in every figure and table: colour by name, dashes for teachers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from palenka.report.colours import CROWD
from palenka.report.models import Model, Role

# Okabe and Ito's palette, distinct for every common kind of colour blindness, without its yellow, too pale on paper.
_COLOURS: dict[Role, tuple[str, ...]] = {
    "student": ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#8C510A"),
    "teacher": ("#CC79A7", "#E69F00", "#7A5195"),
    "control": ("#222222", "#777777"),
    "model": ("#5E8C31", "#B07AA1"),
}


@dataclass(frozen=True)
class Style:
    """The style of a model; models beyond the best few of a role are grey and have no labels."""

    colour: str
    dashed: bool = False
    is_named: bool = True


def style_models(models: Sequence[Model]) -> dict[str, Style]:
    """A style for each model's name; colours go to the best models of each role."""
    styles: dict[str, Style] = {}
    for role, colours in _COLOURS.items():
        members = sorted((model for model in models if model.role == role), key=_loss)
        for place, model in enumerate(members):
            named = place < len(colours)
            styles[model.name] = Style(colours[place] if named else CROWD, role == "teacher", named)
    return styles


def _loss(model: Model) -> float:
    """The model's cross-entropy on held-out text, or its run's validation; infinite if neither is known."""
    known = [model.level(measure) for measure in sorted(model.results) if measure.is_held_out]
    if known:
        return known[0]
    return model.run.result.validation_cross_entropy if model.run else math.inf
