"""A grid's finding: the best variant against its control, its noise, and the form of figures."""

from palenka.grid.record import GridMeasure, GridRecord, GridStage
from palenka.ground.quantities import count
from palenka.report.finding import Finding
from palenka.report.grid.analysis import Noise, best_row
from palenka.report.results import signed


def grid_finding(grid: GridRecord, name: str) -> Finding:
    """The finding of a grid, by its ranking measure: of its finalists if there are any, else of its points."""
    measure = grid.rank_by
    for stage in (grid.finalists, grid.points):
        row = best_row(stage, measure) if stage else None
        found = row.measures[measure] if row else None
        if stage and row and found and (difference := found.difference) is not None:
            paired = set(row.seeds) & set(stage.rows[row.control].seeds)
            chosen = len(grid.points.whole)
            verdict = _verdict(found.interval, (difference > 0) == found.higher_is_better, chosen)
            side = "below" if difference < 0 else "above"
            return Finding(
                f"{row.variant} ends {_amount(abs(difference), found.unit)} {side} its control, "
                f"the mean over {count(len(paired), 'seed')}: {verdict}",
                (_levels(found, stage.rows[row.control].measures[measure]), _choice(grid, stage, chosen)),
            )
    return Finding(f"No variant of {name} has all its seeds and a control yet", ())


def _levels(ours: GridMeasure, theirs: GridMeasure) -> str:
    levels = f"{_level(ours.mean, ours.unit)}, its control {_level(theirs.mean, theirs.unit)}"
    sentence = f"{ours.title[0].upper()}{ours.title[1:]}: {levels}"
    if ours.interval is None:
        return f"{sentence}."
    low, high = (change(end, ours.unit) for end in ours.interval)
    return f"{sentence}; the 95 % interval of the difference, over seeds that are paired, is {low} to {high}."


def _verdict(interval: tuple[float, float] | None, is_better: bool, chosen: int) -> str:
    """The interval in words; it is for one comparison, and the best of many is flattered by the choice."""
    if interval is None:
        return "whether by chance, one cannot tell"
    if interval[0] <= 0 <= interval[1]:
        return "not separated"
    return f"separated before allowing for the choice among {chosen}" if is_better and chosen > 1 else "separated"


def _choice(grid: GridRecord, stage: GridStage, chosen: int) -> str:
    if stage is grid.points:
        return f"It was picked as the best of {chosen} variants after measuring, which favours it."
    finalists = sum(not row.is_control for row in stage.ranking)
    again = "trained again with other settings but the same seeds: part of the luck of that choice stays"
    if finalists == 1:
        return f"It was picked as the best of {chosen} variants and {again}."
    return (
        f"It is the best of {finalists} finalists, which are the best of {chosen} variants, {again}, and the choice "
        "among the finalists favours it too."
    )


def limits_of(noise: Noise | None) -> str:
    """The limits that a grid's noise sets, in numbers."""
    if noise is None:
        return "Fewer than two variants have every seed, so nothing is known of the noise."
    if noise.of_mean is None or noise.of_choice is None:
        return f"Held-out means span {noise.span:.4f} nats; with a single seed nothing tells how much of that is noise."
    return (
        f"The held-out means of {noise.variants} variants span {noise.span:.4f} nats. Without what a seed does to all "
        f"of them, a run deviates by {noise.of_run:.4f}, a mean over {noise.seeds} seeds by {noise.of_mean:.4f}: "
        f"were all variants equal, the best would still look about {noise.of_choice:.4f} better than their mean. "
        f"Intervals are for one comparison each, not for {noise.variants}."
    )


def unsigned(value: float, unit: str) -> str:
    """A value as in the tables: a share in %, others with four digits."""
    return f"{value:.4f}" if unit else f"{100 * value:.1f}"


def change(value: float, unit: str) -> str:
    """The same with its sign, for differences."""
    return signed(value, 4) if unit else signed(100 * value, 1)


def _level(value: float, unit: str) -> str:
    return f"{unsigned(value, unit)} {unit or '%'}"


def _amount(value: float, unit: str) -> str:
    return f"{unsigned(value, unit)} {unit or 'points'}"
