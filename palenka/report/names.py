"""Names for paths: as short as they differ."""

from collections.abc import Iterable
from pathlib import Path

from palenka.ground.files import resolved


def distinct_names(paths: Iterable[Path]) -> dict[Path, str]:
    """For each path its shortest unique suffix of parts."""
    parts_of = {path: resolved(path).parts for path in paths}
    names: dict[Path, str] = {}
    for path, parts in parts_of.items():
        others = [theirs for other, theirs in parts_of.items() if other != path]
        depth = 1
        while depth < len(parts) and any(theirs[-depth:] == parts[-depth:] for theirs in others):
            depth += 1
        names[path] = "/".join(parts[-depth:])
    return names
