"""Printing: names that a user chose are printed unchanged, without rich's markup."""

import os
import sys
import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.table import Column, Table

_WIDE = 160
"""Columns of a table in a file or a pipe."""


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of facts: a line for each, with its name and a description that may wrap.

    Args:
        title: above it.
        rows: the name and the description of each fact. A name that begins with a space is a part of the last fact
            before it whose name does not.
    """
    table = plain_table(title=title)
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for name, said in rows:
        table.add_row(name, said)
    return table


def plain_table(*columns: Column | str, title: str | None = None) -> Table:
    """A table without lines, its title in bold above it."""
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def tell(on: Console, sentence: str) -> None:
    """Print a sentence: on a terminal wrapped between words only, elsewhere as one line."""
    if on.is_terminal:
        sentence = textwrap.fill(sentence, on.width, break_long_words=False, break_on_hyphens=False)
    on.print(sentence, soft_wrap=True)


def console(to_errors: bool = False, wide: bool = False, soft_wrap: bool = False) -> Console:
    """A console without markup.

    Args:
        to_errors: print on standard error.
        wide: give tables more room if there is neither a terminal nor COLUMNS.
        soft_wrap: let the terminal wrap lines.
    """
    width = _WIDE if wide and not sys.stdout.isatty() and "COLUMNS" not in os.environ else None
    return Console(stderr=to_errors, width=width, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)
