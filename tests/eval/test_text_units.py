"""Units of a text: runs of whole documents where there are enough of them, else blocks, never of two sources."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.corpus import Counts, Source
from palenka.eval.text_units import text_units


@dataclass(frozen=True)
class Split:
    """What is asked of a corpus here."""

    document_starts: Any
    sources: tuple[Source, ...]


def split_of(*sources: list[int]) -> Any:
    """A split of sources, each given by the tokens of its documents."""
    lengths = [length for source in sources for length in source]
    starts = np.cumsum([0, *lengths[:-1]])
    records = [
        Source(path=f"{name}.dev", sha256="", cleaner="", counts=Counts(tokens=sum(source)))
        for name, source in enumerate(sources)
    ]
    return Split(starts, tuple(records))


def test_documents_are_drawn_whole() -> None:
    split = split_of([30, 20, 50] * 10)
    found = text_units(split, np.arange(0, 1000, 10))
    document_of = np.searchsorted(split.document_starts, np.arange(0, 1000, 10), side="right") - 1
    assert {name.split()[0] for name in found.units} == {"documents"}
    assert 15 <= len(set(found.units)) <= 20
    for document in range(30):
        assert len(set(found.units[document_of == document])) == 1


def test_few_documents_are_cut_into_five_blocks() -> None:
    found = text_units(split_of([700, 300]), np.arange(0, 1000, 10))
    names, counts = np.unique(found.units, return_counts=True)
    assert names.tolist() == sorted(f"block {number}" for number in range(5))
    assert counts.tolist() == [20] * 5
    # One that is nearly all of the text makes of many documents few.
    assert text_units(split_of([2000] + [10] * 100), np.arange(0, 3000, 10)).units[0] == "block 0"


@given(st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=60), min_size=1, max_size=4), st.integers(1, 50))
def test_each_source_has_units_of_its_own(sources: list[list[int]], length: int) -> None:
    total = sum(map(sum, sources))
    starts = np.arange(0, max(1, total - length + 1), length)
    found = text_units(split_of(*sources), starts)
    ends = np.cumsum([sum(source) for source in sources])
    for start, source in zip(starts, found.sources, strict=True):
        assert source == f"{np.searchsorted(ends, start, side='right')}.dev"
    for name in set(found.sources):
        units = found.units[found.sources == name]
        assert len(set(units)) <= 20
        assert len({unit.split()[0] for unit in units}) == 1
        # The windows of a unit follow each other.
        changes = int((units[1:] != units[:-1]).sum())
        assert changes == len(set(units)) - 1
