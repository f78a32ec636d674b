"""Quantities for people: rounded, with their unit."""

from collections.abc import Collection, Mapping


def duration(seconds: float) -> str:
    """A time: 0.25 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if 0.005 <= seconds < 0.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole // 60 % 60:02} min"


def count(number: int, noun: str) -> str:
    """A number and what it counts: 1 seed, 3 seeds."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def conditions(named: Mapping[str, object]) -> str:
    """Values with their names, such as conditions of a measurement: length 128, split test."""
    return ", ".join(f"{name} {value}" for name, value in named.items())


def extent(values: Collection[float], digits: int) -> str:
    """The least and the greatest of some numbers: 1.4 to 1.7, or 1.4 alone if both are written alike."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def size(count: float) -> str:
    """A number of bytes: 512 bytes, 5.5 MB, 70.6 GB; in powers of 1,000, as for disks."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} bytes"
