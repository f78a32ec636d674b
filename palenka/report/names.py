"""Names for paths: as short as they differ."""

from collections.abc import Iterable
from pathlib import Path


def distinct_names(paths: Iterable[Path]) -> dict[Path, str]:
    """For each path its shortest unique suffix of parts."""
    everything = list(dict.fromkeys(paths))
    names: dict[Path, str] = {}
    for path in everything:
        resolved = path.resolve()
        depth = 1
        while depth < len(resolved.parts) and any(
            other != path and other.resolve().parts[-depth:] == resolved.parts[-depth:] for other in everything
        ):
            depth += 1
        names[path] = "/".join(resolved.parts[-depth:])
    return names
