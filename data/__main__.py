"""Commands of this room: from text to tokens.

palenka data fetch babylm-10m
palenka data prepare configs/corpora/babylm-10m.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from palenka.ground.command_line import parse, run, subcommand
from palenka.ground.console import console

PROGRAM = "palenka data"
COMMANDS = {
    "fetch": "download BabyLM text from the Hugging Face Hub",
    "prepare": "clean raw text, learn a tokenizer or take one, and store the tokens",
    "convert": "turn a GGUF file into the directory of a model",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of this room; returns its exit status."""
    return run(_command, arguments)


def _command(arguments: Sequence[str]) -> None:
    name, rest = subcommand(PROGRAM, COMMANDS, arguments)
    programs = {"fetch": _fetch, "prepare": _prepare, "convert": _convert}
    programs[name](rest)


def _fetch(arguments: Sequence[str]) -> None:
    from palenka.data.text.fetch import FetchSettings, fetch

    settings = parse(FetchSettings, arguments, f"{PROGRAM} fetch")
    fetch(settings.name, settings.output)


def _prepare(arguments: Sequence[str]) -> None:
    from palenka.data.text.prepare import CorpusSettings, prepare

    settings = parse(CorpusSettings, arguments, f"{PROGRAM} prepare")
    prepare(settings)
    _report(settings.output)


def _convert(arguments: Sequence[str]) -> None:
    from palenka.data.from_gguf import ConvertSettings, convert

    convert(parse(ConvertSettings, arguments, f"{PROGRAM} convert"))


def _report(directory: Path) -> None:
    """Print the contents of a prepared corpus."""
    from rich.table import Table

    from palenka.data.corpus import Corpus, splits_of

    corpora = [Corpus.open(directory, split) for split in splits_of(directory)]
    table = Table("", title=f"{directory}: {corpora[0].vocabulary_size:,} tokens in the vocabulary")
    for corpus in corpora:
        table.add_column(corpus.split, justify="right")
    for name in ("documents", "tokens", "words", "bytes", "empty"):
        table.add_row(name, *(f"{getattr(corpus.counts, name):,}" for corpus in corpora))
    table.add_row("repeated", *(f"{corpus.repeated.within:,}" for corpus in corpora))
    table.add_row(
        "also in train", *("" if corpus.split == "train" else f"{corpus.repeated.in_train:,}" for corpus in corpora)
    )
    console().print(table)


if __name__ == "__main__":
    sys.exit(main())
