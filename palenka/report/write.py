"""Writing a report to a file, atomically, and never over anything but a report.

The page needs the extra `palenka[report]`, which is imported only here, when a page is written.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from palenka.ground.console import console
from palenka.ground.errors import UserError, system_error
from palenka.ground.files import require_own, resolved, write_whole
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info

GENERATOR = "palenka report"
"""The mark of a page's origin; a file without it is never replaced."""
_FIRST_CHARACTERS = 1024
_PACKAGES = ("jinja2", "markupsafe", "matplotlib")


def write_report(directories: Sequence[Path], out: Path) -> None:
    """Write a report on everything in some folders; the same files give the same bytes.

    Raises:
        UserError: if a required package is not installed, a folder does not exist or has nothing to report on, a file
            cannot be read, or `out` is not a report or cannot be written.
    """
    if missing := [package for package in _PACKAGES if importlib.util.find_spec(package) is None]:
        raise UserError(f"a report needs {' and '.join(missing)}, not installed here; pip install 'palenka[report]'")
    from palenka.report.page import render
    from palenka.report.sources import find_sources

    require_own(out, lambda text: GENERATOR in text[:_FIRST_CHARACTERS], "report")
    sources = find_sources(directories)
    for path, other in sources.lacking.items():
        info(f"{path} is gone, or is not as it was written, though {other} belongs to it: the page lacks what it says")
    page = render(sources, ", ".join(resolved(directory).name for directory in directories))
    try:
        with sole_writer(out, wait=True):
            write_whole(out, page)
    except OSError as error:
        raise system_error(f"cannot write {out}", error) from error


def try_report(directories: Sequence[Path], out: Path) -> None:
    """Write the report at the end of a study or a grid; if that fails, only print why, since the results exist."""
    try:
        write_report(directories, out)
    except (UserError, OSError) as error:
        info(f"{out} is not written: {error}")
    else:
        console(soft_wrap=True).print(f"Written to {out}")
