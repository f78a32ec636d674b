"""A grid's figures: the numbers of each chart, and its caption."""

import statistics
from collections.abc import Sequence

from palenka.grid.record import HELD_OUT, GridRow, GridStage, run_name
from palenka.ground.quantities import count
from palenka.report.canvas import NARROW, WIDE
from palenka.report.charts import Dot, dot_chart
from palenka.report.figures import Captioned
from palenka.report.grid.analysis import Noise, Option, PairedRun, controls_of
from palenka.report.grid.heat_map import Cell, digits_in, heat_map
from palenka.report.grid.seed_chart import SeedDot, seed_chart, seed_styles
from palenka.report.results import Estimate


def grid_figures(stage: GridStage, options: Sequence[Option], noise: Noise | None) -> list[Captioned]:
    """A heat map if two options are varied by numbers, then a chart for each option."""
    if not stage.runs:
        return []
    drawn = []
    if len(options) == 2 and all(option.is_number for option in options):
        drawn.append(_heat_map(stage, options[0], options[1], noise))
    return drawn + [_seed_chart(stage, option) for option in options]


def finalist_figures(stage: GridStage, pairs: Sequence[PairedRun]) -> list[Captioned]:
    """The cross-entropy of every run of the finalists, and its paired difference from the control's."""
    if not stage.runs:
        return []
    styles, runs = seed_styles(stage.seeds), stage.by_variant
    levels = []
    for row in stage.ranking:
        dots = [
            Dot(styles[seed][0], Estimate.of(run.held_out, run.held_out.unit), row.is_control, f"seed {seed}")
            for seed in stage.seeds
            if (run := runs.get((row.variant, seed)))
        ]
        levels.append((row.variant, dots))
    unit = "nats per token, with 95 % interval"
    drawn = [
        (
            "Held-out cross-entropy of each run, with its interval over the text, the seeds in order from the "
            "top. Controls are hollow. The intervals share what is hard in the text, so they say how well a level is "
            "known, not how well a difference is.",
            dot_chart(levels, "Held-out cross-entropy of the finalists", unit),
        )
    ]
    differences: dict[str, list[Dot]] = {}
    for pair in pairs:
        if windows := pair.comparison.windows:
            estimate, seed = Estimate(windows["difference"], *windows["interval"]), pair.run.seed
            dot = Dot(styles[seed][0], estimate, name=f"seed {seed}")
            differences.setdefault(pair.run.variant, []).append(dot)
    if differences:
        caption = (
            "Each finalist less its control of the same seed, on the same windows, with the paired interval; left of "
            "the dashed rule the finalist is better."
        )
        chart = dot_chart(list(differences.items()), "Finalists less their controls", unit, reference=0.0)
        drawn.append((caption, chart))
    return drawn


def _heat_map(stage: GridStage, rows: Option, columns: Option, noise: Noise | None) -> Captioned:
    cells = {}
    for row in stage.ranking:
        places = rows.place(row), columns.place(row)
        if not row.is_control and places[0] is not None and places[1] is not None:
            cells[places[0], places[1]] = _cell(stage, row)
    controls = controls_of(stage)
    levels = [row.measures[HELD_OUT].mean for row in controls]
    chart = heat_map(
        (rows.name, rows.labels), (columns.name, columns.labels), cells, levels, "Held-out cross-entropy over the grid"
    )
    wide, narrow = (digits_in(size.width, len(columns.values)) is not None for size in (WIDE, NARROW))
    numbers = ", and beneath it the difference from the control" if wide else "; the ranking has the numbers"
    numbers += " (on a phone the ranking has the numbers)" * (wide and not narrow)
    caption = (
        f"Held-out cross-entropy in nats per token, the mean over {count(len(stage.seeds), 'seed')}{numbers}. Dark is "
        "low, which is better; the lowest cell is outlined."
    )
    caption += _of_controls(controls)
    if noise and noise.of_mean is not None:
        caption += (
            f" A mean over the seeds is uncertain by about {noise.of_mean:.4f} (standard error), the means span "
            f"{noise.span:.4f}."
        )
    if lacking := sum(cell.value is None for cell in cells.values()):
        caption += f" Hatched, {lacking} of {len(cells)}: seeds failed or did not run, so a mean would not compare."
    return caption, chart


def _cell(stage: GridStage, row: GridRow) -> Cell:
    if not row.lacking:
        return Cell(row.measures[HELD_OUT].mean, row.measures[HELD_OUT].difference, name=row.variant)
    if row.seeds:
        return Cell(None, None, f"{len(row.seeds)} of {row.planned}", row.variant)
    failed = any(run_name("points", row.variant, seed) in stage.failures for seed in row.lacking)
    return Cell(None, None, "failed" if failed else "not run", row.variant)


def _seed_chart(stage: GridStage, option: Option) -> Captioned:
    rows = [(stage.rows[run.variant], run) for run in stage.runs.values()]
    dots = [(row, SeedDot(option.place(row), run.seed, run.held_out.value, row.variant)) for row, run in rows]
    chart = seed_chart(
        option.labels,
        [dot for row, dot in dots if not row.is_control],
        [dot for row, dot in dots if row.is_control],
        [_mean_at(stage, option, place) for place in range(len(option.values))],
        option.name,
        f"Held-out cross-entropy over {option.name}",
    )
    caption = (
        f"Every run: held-out cross-entropy in nats per token over {option.name}, {count(len(stage.seeds), 'seed')}. "
        "Dashed: the control of each seed, which read the same windows in the same order; a far one has a panel of its "
        "own. The line joins the means over all runs of a value, where none is missing. Values are equally far apart."
    )
    return caption, chart


def _mean_at(stage: GridStage, option: Option, place: int) -> float | None:
    here = [row for row in stage.ranking if not row.is_control and option.place(row) == place]
    if any(row.lacking for row in here):
        return None
    names = {row.variant for row in here}
    return statistics.fmean(run.held_out.value for run in stage.runs.values() if run.variant in names)


def _of_controls(controls: Sequence[GridRow]) -> str:
    if not controls:
        return " No run of the control is finished, so there is nothing to compare with."
    if len(controls) > 1:
        return f" Each cell has the control of its own values; the {len(controls)} levels are marked in the legend."
    lacking = f", over {count(len(controls[0].seeds), 'seed')} alone" if controls[0].lacking else ""
    return f" The control's level, {controls[0].measures[HELD_OUT].mean:.4f}{lacking}, is marked in the legend."
