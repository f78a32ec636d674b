"""Writing a report to a file: whole or not at all, and never over something else.

The page needs the extra `palenka[report]`, which is imported only here, when one is written.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from palenka.ground.errors import UserError
from palenka.ground.files import write_whole
from palenka.ground.progress import info

GENERATOR = "palenka report"
"""What a page says of its origin; a file that does not say so is never replaced."""
_FIRST_BYTES = 1024
_PACKAGES = ("jinja2", "markupsafe", "matplotlib")


def write_report(directories: Sequence[Path], out: Path) -> None:
    """Write a report on everything that is found in some folders; the same files give the same bytes.

    Raises:
        UserError: if a package that it needs is not installed, a folder does not exist or holds nothing to report on, a
            file cannot be read, or `out` is something else than a report or cannot be written.
    """
    if missing := [package for package in _PACKAGES if importlib.util.find_spec(package) is None]:
        raise UserError(f"a report needs {' and '.join(missing)}, not installed here; pip install 'palenka[report]'")
    from palenka.report.page import render
    from palenka.report.sources import find_sources

    if out.is_dir() or (out.exists() and GENERATOR.encode() not in out.read_bytes()[:_FIRST_BYTES]):
        raise UserError(f"{out} exists and is no report; choose another out")
    page = render(find_sources(directories), ", ".join(directory.resolve().name for directory in directories))
    try:
        write_whole(out, page)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; make room or choose another out") from error


def try_report(directories: Sequence[Path], out: Path) -> None:
    """Write the report that a study or a grid ends with; if that cannot be, say why: their results are there."""
    try:
        write_report(directories, out)
    except (UserError, OSError) as error:
        info(f"{out} is not written: {error}")
    else:
        Console().print(f"Written to {out}", markup=False, highlight=False, soft_wrap=True)
