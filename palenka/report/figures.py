"""The report's figures: the numbers of each chart, and its caption."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from palenka.eval.learning_curve import LearningCurve
from palenka.ground.quantities import conditions
from palenka.report.cache_card import CacheCard, Histogram
from palenka.report.charts import Dot, Line, Shape, bar_chart, dot_chart, histogram_chart, line_chart
from palenka.report.colours import INK, MUTED
from palenka.report.costs import BreakEven
from palenka.report.models import Model
from palenka.report.official import OfficialRow
from palenka.report.pairs import PairSuite
from palenka.report.results import Estimate, Measure
from palenka.report.styles import Style
from palenka.train_student.run_facts import Series

Captioned = tuple[str, Markup]
"""A caption in one sentence, and the chart."""
Styles = Mapping[str, Style]

RATIO = "gradient_ratio/"
"""Prefix of metrics that are a term's gradient norm over that of the hard term."""
_POINTS = 120
_LOG_RANGE = 8.0
"""Terms with a larger ratio of largest to smallest value are drawn on a logarithmic axis."""
_FIRST_PART = 0.1
"""The first part of a run, which may lie above the frame: its loss is far from where models differ."""
_MOST_DOTS = 8
"""Maximum models in a row of dots; of more, only those with their own colour are drawn."""
_TEMPERATURE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_TOKENS, _NATS = "million tokens", "nats per token"


def measure_figure(models: Sequence[Model], measure: Measure, styles: Styles) -> Markup:
    """A measure of all models with its interval, one row per model."""
    estimates = {model.name: model.estimate(measure) for model in models}
    rows = [(name, [_dot(styles[name], found)]) for name, found in estimates.items() if found]
    return dot_chart(rows, f"{measure.title} of each model", f"{measure.unit or '%'}, with 95 % interval")


def overall_figure(rows: Sequence[OfficialRow], styles: Styles) -> Markup:
    """The overall figure of the official table with its interval, one row per model."""
    dots = [(row.model.name, [_dot(styles[row.model.name], row.overall)]) for row in rows]
    return dot_chart(dots, "Overall figure of each model", "%, with 95 % interval")


def learning_figures(models: Sequence[Model], control: Model | None, styles: Styles) -> list[Captioned]:
    """Learning curves, with the students' differences from a control."""
    drawn = []
    if lines := _lines(models, "hard", styles):
        top = float(_late(lines).max())
        chart = line_chart(lines, "Training cross-entropy", _TOKENS, _NATS, y_limits=(None, top))
        caption = "Training text, the mean since the last logged step; the first tenth may lie above the frame."
        drawn.append((caption, chart))
    if lines := _lines(models, "validation_cross_entropy", styles, marked=True):
        chart = line_chart(lines, "Validation cross-entropy", _TOKENS, _NATS)
        drawn.append(("Validation windows, measured now and then.", chart))
    if control and (lines := _differences(models, control, styles)):
        late = _late(lines)
        margin = 0.1 * float(np.ptp(late)) or 0.01
        limits = (min(float(late.min()), 0.0) - margin, max(float(late.max()), 0.0) + margin)
        title = f"Training cross-entropy less that of {control.name}"
        caption = (
            f"Training text, less {control.name} at the same step: both read the same windows in the same order, so "
            "what is hard in them cancels. Below 0 the student is better."
        )
        drawn.append((caption, line_chart(lines, title, _TOKENS, _NATS, y_limits=limits, zero=True)))
    return drawn


def revision_figures(curves: Sequence[LearningCurve], models: Sequence[Model], styles: Styles) -> list[Captioned]:
    """A chart for every suite that revisions were measured on: its figure over the words that their runs had read."""
    names = {model.weights: model.name for model in models}
    lines: dict[tuple[str, str, str], list[Line]] = {}
    for number, curve in enumerate(curves):
        name = names.get(curve.model.weights, curve.name)
        other = Style(_TEMPERATURE_COLOURS[number % len(_TEMPERATURE_COLOURS)])
        for suite, title, unit, under in _measured_of(curve):
            points = [point for point in curve.revisions if suite in point.suites]
            estimates = [Estimate.of(point.suites[suite].figure, unit) for point in points]
            x = np.array([point.words / 1e6 for point in points])
            y, low, high = (np.array([getattr(each, part) for each in estimates]) for part in ("value", "low", "high"))
            style = styles.get(name, other)
            line = Line(name, style.colour, x, y, style.dashed, marked=True, band=(low, high))
            lines.setdefault((title, unit or "%", under), []).append(line)
    return [
        (
            f"{title[0].upper()}{title[1:]}{f' ({under})' * bool(under)}, with 95 % intervals.",
            line_chart(drawn, f"{title} over revisions", "million words read", unit),
        )
        for (title, unit, under), drawn in lines.items()
    ]


def _measured_of(curve: LearningCurve) -> list[tuple[str, str, str, str]]:
    """Every suite that some revision was measured on: its name, title, unit and conditions."""
    found = {suite: of for point in curve.revisions for suite, of in point.suites.items()}
    return [(suite, of.title, of.figure.unit, conditions(of.conditions)) for suite, of in found.items()]


def term_figures(models: Sequence[Model], styles: Styles) -> list[Captioned]:
    """A chart for every distillation term that was logged, such as logit/gpt2."""
    names = [name for name in _slashed(models) if not name.startswith(("gradient_", "weight/"))]
    return [
        (f"The term {name}, before its weight.", _metric_figure(models, name, f"Term {name}", name, styles))
        for name in names
    ]


def ratio_figures(models: Sequence[Model], styles: Styles) -> list[Captioned]:
    """A chart for every gradient ratio that was logged."""
    drawn = []
    for name in (name for name in _slashed(models) if name.startswith(RATIO)):
        term = name.removeprefix(RATIO)
        chart = _metric_figure(models, name, f"Gradient ratio of {term}", f"{term} : hard", styles)
        drawn.append((f"Gradient of {term} over that of the hard term.", chart))
    return drawn


def pairs_figure(suite: PairSuite, styles: Styles) -> Markup:
    """The figure per phenomenon, or per paradigm if a suite has one phenomenon: one row each, one dot per model."""
    few = len(suite.models) <= _MOST_DOTS
    names = [model.name for model in suite.models if few or styles[model.name].is_named]
    rows = []
    for row, scores in suite.rows:
        found = [(name, styles[name], scores[name]) for name in names if name in scores]
        rows.append((row, [_dot(style, Estimate.of(of), name) for name, style, of in found]))
    return dot_chart(rows, f"Figures on {suite.measure.title}", "%, with 95 % interval", reference=suite.chance)


def cache_figures(card: CacheCard) -> list[Captioned]:
    """Charts of a cache's contents, if anything is captured."""
    if not card.tokens:
        return []
    sample = f"{card.sampled_tokens:,} sampled tokens"
    means = ", ".join(f"{found.mean:.2f} at T = {t:g}" for t, found in card.entropy_histograms.items())
    bound, others = ("", "") if card.knows_others else (", a lower bound", ", all other tokens as one")
    sizes = {array: card.bytes_per_token(array) for array in card.bytes_by_array}
    bars = [(array, size, f"{size:.1f}") for array, size in sizes.items()]
    drawn = [
        (
            "Bytes per token on disk, by array.",
            bar_chart(bars, f"Bytes per token of cache {card.name} by array", "bytes per token"),
        ),
        (
            f"Mass of {card.logits.summary()}; {sample}.",
            histogram_chart(
                _shapes(card.kept_mass_histograms),
                f"Kept mass of cache {card.name}",
                "mass on the kept tokens (0 none, 1 all)",
            ),
        ),
        (
            f"Entropy{bound}; mean {means}; {sample}.",
            histogram_chart(
                _shapes(card.entropy_histograms),
                f"Entropy of cache {card.name}",
                f"entropy in nats{others}",
            ),
        ),
    ]
    if card.hidden_errors:
        bars = [(layer, error, f"{error:.2g}") for layer, error in card.hidden_errors.items()]
        chart = bar_chart(bars, f"Error of the stored states of cache {card.name}", "relative squared error", "#8C510A")
        drawn.append(("Stored hidden states: squared error over variance, by layer.", chart))
    return drawn


def cost_figures(seconds: Mapping[str, float], costs: BreakEven | None) -> list[Captioned]:
    """Charts of a study's seconds, and of its teachers' over the number of students, cached and live."""
    drawn = []
    if seconds:
        bars = [(stage, value, f"{value:,.0f}") for stage, value in seconds.items()]
        caption = f"Seconds per stage, {sum(seconds.values()):,.0f} s in all."
        drawn.append((caption, bar_chart(bars, "Seconds per stage", "seconds", MUTED)))
    if costs:
        students = np.array([0.0, max(5.0, 2.5 * costs.students_needed)])
        even = np.array([costs.students_needed]), np.array([costs.capture_seconds])
        lines = [
            Line("cached", "#0072B2", students, np.full(2, costs.capture_seconds)),
            Line("live", "#D55E00", students, costs.live_seconds * students),
            Line("", INK, *even, marked=True, name="both cost the same"),
        ]
        title = "Seconds of teachers, cached and live, by number of students"
        chart = line_chart(lines, title, "students", "seconds of teachers")
        drawn.append(("Seconds of teachers by number of students.", chart))
    return drawn


def _metric_figure(models: Sequence[Model], name: str, title: str, y_label: str, styles: Styles) -> Markup:
    lines = _lines(models, name, styles)
    values = np.concatenate([line.y for line in lines])
    log = bool(values.min() > 0 and values.max() > _LOG_RANGE * values.min())
    return line_chart(lines, title, _TOKENS, y_label, log=log)


def _differences(models: Sequence[Model], control: Model, styles: Styles) -> list[Line]:
    """Training cross-entropy less the control's, for the students that read the same windows in the same order."""
    if control.run is None or "hard" not in control.run.metrics:
        return []
    alike = [model for model in models if model.role == "student" and model.run and model.run.reads_like(control.run)]
    return _lines(alike, "hard", styles, less=control.run.metrics["hard"])


def _slashed(models: Sequence[Model]) -> list[str]:
    return sorted({name for model in models if model.run for name in model.run.metrics if "/" in name})


def _lines(
    models: Sequence[Model], name: str, styles: Styles, *, marked: bool = False, less: Series | None = None
) -> list[Line]:
    """A metric over tokens, a line for each run that logged it; less another run's at the same steps."""
    lines = []
    for model in models:
        if model.run is None or name not in model.run.metrics:
            continue
        steps, values = model.run.metrics[name]
        if less is not None:
            if not np.array_equal(steps, less[0]):
                continue
            values = values - less[1]
        steps, values = thin((steps, values) if marked else without_rest((steps, values)), _POINTS)
        style = styles[model.name]
        label = model.name if style.is_named else ""
        tokens = model.run.tokens_at(steps) / 1e6
        lines.append(Line(label, style.colour, tokens, values, style.dashed, marked, model.name))
    return lines


def _late(lines: Sequence[Line]) -> NDArray[np.float64]:
    """The values of lines without those of the first part."""
    return np.concatenate([line.y[line.x >= _FIRST_PART * line.x[-1]] for line in lines])


def without_rest(series: Series) -> Series:
    """A logged series without its last point, if that is a mean over far fewer steps than the others."""
    steps, values = series
    if len(steps) > 2 and steps[-1] - steps[-2] < 0.5 * (steps[-2] - steps[-3]):
        return steps[:-1], values[:-1]
    return series


def thin(series: Series, points: int) -> Series:
    """A series as the means of at most that many groups of neighbours."""
    groups = min(points, len(series[0]))
    steps, values = (np.array([part.mean() for part in np.array_split(each, groups)]) for each in series)
    return steps, values


def _dot(style: Style, estimate: Estimate, name: str = "") -> Dot:
    return Dot(style.colour, estimate, style.dashed, name)


def _shapes(histograms: Mapping[float, Histogram]) -> list[Shape]:
    return [
        (f"T = {temperature:g}", _TEMPERATURE_COLOURS[number % len(_TEMPERATURE_COLOURS)], found.edges, found.shares)
        for number, (temperature, found) in enumerate(histograms.items())
    ]
