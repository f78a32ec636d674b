"""The suites that a model can be measured on, and where their data lies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from palenka.ground.errors import UserError

PairSuite = Literal["blimp", "blimp_filtered", "blimp_supplement", "ewok_filtered", "minimal_pairs"]
"""Suites of minimal pairs; the last is for pairs of one's own in BLiMP's form."""
Suite = Literal[PairSuite, "held_out"]

PairPrecision = Literal["float32", "bf16"]
"""What minimal pairs may be computed in."""

_FOLDERS: dict[Suite, tuple[str, ...]] = {
    "blimp": ("blimp",),
    "blimp_filtered": ("blimp_filtered",),
    "blimp_supplement": ("blimp_supplement", "supplement_filtered"),
    "ewok_filtered": ("ewok_filtered",),
    "minimal_pairs": ("minimal_pairs",),
    "held_out": ("held_out", "corpus"),
}
"""Names of the subfolders that may hold a suite's data; the official downloads use these."""


def folders_of(suites: Sequence[Suite], data: Path | Mapping[str, Path]) -> dict[Suite, Path]:
    """The folder of each suite.

    Args:
        suites: at least one, each once.
        data: a folder by suite; or the folder of the only suite; or one with a subfolder for each suite.

    Raises:
        UserError: if a suite has no folder, or data names a suite that is not measured.
    """
    if isinstance(data, Mapping):
        for name in data:
            if name not in suites:
                raise UserError(f"data names {name}, but the suites are {', '.join(suites)}; add it to --suite")
        for suite in suites:
            if suite not in data:
                raise UserError(f"data has no folder for {suite}; give it as --data.{suite} DIR")
        return {suite: data[suite] for suite in suites}
    if tuple(suites) == ("held_out",):
        return {"held_out": data}
    if not data.is_dir():
        raise UserError(f"data {data} is not a folder; give the one that holds what {', '.join(suites)} needs")
    found = {suite: data / name for suite in suites for name in reversed(_FOLDERS[suite]) if (data / name).is_dir()}
    if len(suites) == 1:
        # Its own folder comes first: a folder of pairs may lie beside one that is named like a suite.
        return {suites[0]: data if any(data.glob("*.jsonl")) else found.get(suites[0], data)}
    for suite in suites:
        if suite not in found:
            raise UserError(
                f"data {data} has no folder {' or '.join(_FOLDERS[suite])}, which {suite} needs; with several suites "
                f"give a folder with one for each, or each by itself as --data.{suite} DIR"
            )
    return {suite: found[suite] for suite in suites}
