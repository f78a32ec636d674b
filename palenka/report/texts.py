"""Comparable losses: those of runs with the same corpus, tokenizer and windows. A chart never mixes others."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from palenka.report.names import distinct_names
from palenka.train_student.run_facts import FinishedRun


@dataclass(frozen=True)
class LossBasis:
    """The facts that runs with comparable losses share.

    Attributes:
        corpus: fingerprint of the text that was trained on.
        validation: fingerprint of the text that was validated on, and how many windows of it.
        tokenizer: hash of the tokenizer.
        length: tokens in a window; a longer one is easier.
    """

    corpus: str
    validation: tuple[str, int]
    tokenizer: str
    length: int

    @staticmethod
    def of(run: FinishedRun) -> "LossBasis":
        """The basis of a run."""
        inputs, settings = run.inputs, run.settings
        validation = inputs.validation, settings.validation.windows
        return LossBasis(inputs.corpus, validation, inputs.tokenizer, settings.windows.length)


def name_texts(runs: Iterable[FinishedRun]) -> dict[LossBasis, str]:
    """Names of all texts that runs read, the most read first: the corpus's folder, and what distinguishes them."""
    readers: dict[LossBasis, list[FinishedRun]] = {}
    for run in runs:
        readers.setdefault(LossBasis.of(run), []).append(run)
    folders = {text: of[0].settings.corpus for text, of in readers.items()}
    short = distinct_names(folders.values())
    ordered = sorted(readers, key=lambda text: (-len(readers[text]), short[folders[text]], text.length, text.corpus))
    return {text: _name(text, short[folders[text]], folders[text], folders) for text in ordered}


def _name(text: LossBasis, name: str, folder: Path, folders: dict[LossBasis, Path]) -> str:
    others = [other for other in folders if folders[other] == folder and other != text]
    parts = [name]
    if any(other.length != text.length for other in others):
        parts.append(f"windows of {text.length} tokens")
    if any(other.validation[1] != text.validation[1] for other in others):
        parts.append(f"validated on {text.validation[1]} windows")
    if any((other.corpus, other.tokenizer) != (text.corpus, text.tokenizer) for other in others):
        parts.append(f"made as {text.corpus[:8]}")
    return ", ".join(parts)
