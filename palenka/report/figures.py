"""The report's figures: which numbers go into which chart."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from palenka.report.cache_card import CacheCard, Histogram
from palenka.report.charts import INK, Dot, Line, bar_chart, dot_chart, histogram_chart, line_chart
from palenka.report.costs import BreakEven
from palenka.report.finding import Estimate, accuracy_of, cross_entropy_of
from palenka.report.models import Measure, Model
from palenka.report.pairs import PairSuite
from palenka.report.run_files import Series
from palenka.report.styles import Style

RATIO = "gradient_ratio/"
"""What a metric's name begins with if it is a term's gradient norm over that of the hard term."""
VALIDATION = "validation_cross_entropy"
_POINTS = 120
_LOG_RANGE = 8.0
"""Terms whose largest value is that many times the smallest are drawn on a logarithmic axis."""
_FIRST_PART = 0.1
"""The part of a run that may lie above the frame: its loss is far from where models differ."""
_MOST_DOTS = 8
"""Models that fit into a row of dots; of more, only those with a colour of their own are drawn."""
_TEMPERATURE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

Styles = Mapping[str, Style]


def measure_figure(models: Sequence[Model], measure: Measure, styles: Styles) -> Markup:
    """A measure of all models, cross-entropy or accuracy, with its interval, a row a model."""
    rows, unit = [], "nats per token, with 95 % interval"
    for model in models:
        style, found = styles[model.name], cross_entropy_of(model, measure)
        if found is None and (accuracy := accuracy_of(model, measure)):
            found, unit = accuracy.times(100), "%, with 95 % interval"
        if found is not None:
            rows.append((model.name, [Dot(style.colour, found.value, found.low, found.high, style.dashed)]))
    return dot_chart(rows, f"{measure.title} of each model", unit)


def training_figure(models: Sequence[Model], styles: Styles) -> Markup | None:
    """Cross-entropy on the training text over tokens."""
    lines = _metric_lines(models, "hard", styles)
    if not lines:
        return None
    late = [line.y[line.x >= _FIRST_PART * line.x[-1]] for line in lines]
    top = max(float(values.max()) for values in late)
    return line_chart(lines, "Training cross-entropy", "million tokens", "nats per token", y_limits=(None, top))


def validation_figure(models: Sequence[Model], styles: Styles) -> Markup | None:
    """Cross-entropy on the validation windows over tokens."""
    lines = _metric_lines(models, VALIDATION, styles, marked=True)
    if not lines:
        return None
    return line_chart(lines, "Validation cross-entropy", "million tokens", "nats per token")


def difference_figure(models: Sequence[Model], control: Model, styles: Styles) -> Markup | None:
    """Training cross-entropy less the control's, for the students that read the same windows in the same order."""
    assert control.run
    base = control.run.metrics.get("hard")
    lines = []
    for model in models:
        if base is None or model.role != "student" or model.run is None or not model.run.reads_like(control.run):
            continue
        series = model.run.metrics.get("hard")
        if series is not None and np.array_equal(series[0], base[0]):
            style = styles[model.name]
            lines.append(_line(model, (series[0], series[1] - base[1]), style))
    if not lines:
        return None
    late = np.concatenate([line.y[line.x >= _FIRST_PART * line.x[-1]] for line in lines])
    margin = 0.1 * float(np.ptp(late)) or 0.01
    limits = (min(float(late.min()), 0.0) - margin, max(float(late.max()), 0.0) + margin)
    title = f"Training cross-entropy less that of {control.name}"
    return line_chart(lines, title, "million tokens", "nats per token", y_limits=limits, zero=True)


def term_names(models: Sequence[Model]) -> list[str]:
    """Every distillation term that these models' runs logged, such as logit/gpt2."""
    return [name for name in _slashed(models) if not name.startswith(("gradient_", "weight/"))]


def ratio_names(models: Sequence[Model]) -> list[str]:
    """Every gradient ratio that these models' runs logged."""
    return [name for name in _slashed(models) if name.startswith(RATIO)]


def _slashed(models: Sequence[Model]) -> list[str]:
    return sorted({name for model in models if model.run for name in model.run.metrics if "/" in name})


def term_figure(models: Sequence[Model], name: str, styles: Styles) -> Markup:
    """A term, or a gradient ratio, over tokens: a line for each run that logged it."""
    lines = _metric_lines(models, name, styles)
    term = name.removeprefix(RATIO)
    values = np.concatenate([line.y for line in lines]) if lines else np.ones(1)
    log = bool(values.min() > 0 and values.max() > _LOG_RANGE * values.min())
    if term == name:
        return line_chart(lines, f"Term {term}", "million tokens", term, log=log)
    return line_chart(lines, f"Gradient ratio of {term}", "million tokens", f"{term} : hard", log=log)


def phenomena_figure(suite: PairSuite, styles: Styles) -> Markup:
    """Accuracy per phenomenon, or per paradigm where a suite has one phenomenon: a row each, a dot a model."""
    few = len(suite.models) <= _MOST_DOTS
    drawn = [model for model in suite.models if few or styles[model.name].is_named]
    rows = []
    for name, scores in suite.rows:
        dots = []
        for model in drawn:
            if score := scores.get(model.name):
                style, found = styles[model.name], Estimate.of_accuracy(score.accuracy, score.stderr).times(100)
                dots.append(Dot(style.colour, found.value, found.low, found.high, style.dashed))
        rows.append((name, dots))
    return dot_chart(rows, f"Accuracy on {suite.measure.title}", "accuracy in %, with 95 % interval", reference=50.0)


def bytes_figure(card: CacheCard, name: str) -> Markup:
    """Bytes per token of each array."""
    bars = [(array, card.bytes_per_token(array), f"{card.bytes_per_token(array):.1f}") for array in card.bytes_by_array]
    return bar_chart(bars, f"Bytes per token of cache {name} by array", "bytes per token")


def mass_figure(card: CacheCard, name: str) -> Markup:
    """Histogram of the kept mass at each temperature."""
    return histogram_chart(
        _shapes(card.kept_mass_histograms), f"Kept mass of cache {name}", "mass on the kept tokens (0 none, 1 all)"
    )


def entropy_figure(card: CacheCard, name: str) -> Markup:
    """Histogram of the entropy at each temperature."""
    return histogram_chart(
        _shapes(card.entropy_histograms), f"Entropy of cache {name}", "entropy in nats, all other tokens as one"
    )


def errors_figure(card: CacheCard, name: str) -> Markup:
    """Relative squared error of the stored states by teacher and layer."""
    bars = [(layer, error, f"{error:.2g}") for layer, error in card.hidden_errors.items()]
    return bar_chart(bars, f"Error of the stored states of cache {name}", "relative squared error", "#8C510A")


def seconds_figure(seconds: Mapping[str, float]) -> Markup:
    """Seconds of each stage."""
    bars = [(stage, value, f"{value:,.0f}") for stage, value in seconds.items()]
    return bar_chart(bars, "Seconds per stage", "seconds", "#5b6470")


def break_even_figure(costs: BreakEven) -> Markup:
    """Seconds of the teachers' forward passes over the number of students, cached and live."""
    last = max(5.0, 2.5 * costs.students_needed)
    students = np.array([0.0, last])
    return line_chart(
        [
            Line("cached", "#0072B2", students, np.full(2, costs.capture_seconds)),
            Line("live", "#D55E00", students, costs.live_seconds * students),
            Line("", INK, np.array([costs.students_needed]), np.array([costs.capture_seconds]), marked=True),
        ],
        "Seconds of teachers, cached and live, by number of students",
        "students",
        "seconds of teachers",
    )


def _metric_lines(models: Sequence[Model], name: str, styles: Styles, *, marked: bool = False) -> list[Line]:
    return [
        _line(model, model.run.metrics[name], styles[model.name], marked=marked)
        for model in models
        if model.run is not None and name in model.run.metrics
    ]


def _line(model: Model, series: Series, style: Style, *, marked: bool = False) -> Line:
    assert model.run
    steps, values = thin(series if marked else without_rest(series), _POINTS)
    label = model.name if style.is_named else ""
    return Line(label, style.colour, model.run.tokens_at(steps) / 1e6, values, style.dashed, marked)


def without_rest(series: Series) -> Series:
    """A logged series without its last point where that is a mean over far fewer steps than the others."""
    steps, values = series
    if len(steps) > 2 and steps[-1] - steps[-2] < 0.5 * (steps[-2] - steps[-3]):
        return steps[:-1], values[:-1]
    return series


def thin(series: Series, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A series as the means of at most that many groups of neighbours."""
    steps, values = series
    groups = min(points, len(steps))
    means = [(part.mean(), other.mean()) for part, other in _groups(steps, values, groups)]
    return np.array(means)[:, 0], np.array(means)[:, 1]


def _groups(
    steps: NDArray[np.float64], values: NDArray[np.float64], groups: int
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return list(zip(np.array_split(steps, groups), np.array_split(values, groups), strict=True))


def _shapes(
    histograms: Mapping[float, Histogram],
) -> list[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]]:
    return [
        (
            f"T = {temperature:g}",
            _TEMPERATURE_COLOURS[number % len(_TEMPERATURE_COLOURS)],
            histogram.edges,
            histogram.shares,
        )
        for number, (temperature, histogram) in enumerate(histograms.items())
    ]
