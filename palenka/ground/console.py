"""What commands print: names of people's own are printed as they are, whatever rich would read into their brackets."""

import sys

from rich.console import Console

_WIDE = 160
"""Columns of a table in a file or a pipe, which has room for any."""


def console(to_errors: bool = False, wide: bool = False, soft_wrap: bool = False) -> Console:
    """A console that takes nothing in a text for markup.

    Args:
        to_errors: print on standard error.
        wide: give tables more room than a terminal where there is none.
        soft_wrap: leave it to the terminal to break lines.
    """
    width = _WIDE if wide and not sys.stdout.isatty() else None
    return Console(stderr=to_errors, width=width, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)
