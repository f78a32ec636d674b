"""Minimal pairs on disk: JSON lines of BLiMP and of EWoK, each line checked and named by file and line if it is wrong.

BLiMP's form has `sentence_good` and `sentence_bad`, and a file is a task. EWoK's has `Context1`, `Target1` (the right
one), `Target2` and `Domain`, and a domain is a task.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palenka.ground.errors import UserError
from palenka.ground.files import sha256_of_file

_EWOK_FIELDS = ("Domain", "Context1", "Target1", "Target2")
_BLIMP_FIELDS = ("sentence_good", "sentence_bad")


@dataclass(frozen=True)
class MinimalPair:
    """Two texts of which a model should find the first more probable.

    Attributes:
        file: that it was read from.
        line: in the file, counted from 1.
        task: what accuracies are grouped by.
        index: among the pairs of its task, counted from 0, in the order of files and lines.
        good: the right sentence or target.
        bad: the wrong one.
        context: what stands before the targets; None where whole sentences are compared.
    """

    file: Path
    line: int
    task: str
    index: int
    good: str
    bad: str
    context: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, as ``file:line``."""
        return f"{self.file}:{self.line}"


def read_pairs(folder: Path, is_ewok: bool) -> list[MinimalPair]:
    """All pairs in the ``*.jsonl`` files of a folder, in the order of file names and lines.

    Raises:
        UserError: for no files, an empty file, or a line that is no pair; names the file and the line.
    """
    pairs: list[MinimalPair] = []
    seen: Counter[str] = Counter()
    for file in pair_files(folder):
        before = len(pairs)
        for line, row in _rows(file):
            fields = _require_texts(row, _EWOK_FIELDS if is_ewok else _BLIMP_FIELDS, f"{file}:{line}")
            if is_ewok:
                task, context, good, bad = fields
            else:
                task, context, (good, bad) = file.stem, None, fields
            pairs.append(MinimalPair(file, line, task, seen[task], good, bad, context))
            seen[task] += 1
        if len(pairs) == before:
            raise UserError(f"{file} is empty, but every file should hold at least one pair; remove it or get it again")
    return pairs


def pair_files(folder: Path) -> list[Path]:
    """The ``*.jsonl`` files of a folder, by name.

    Raises:
        UserError: if there is no such folder, or none of these files in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds the suite's *.jsonl files")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{folder} holds no *.jsonl files; give the folder that holds those of the suite")
    return files


def hash_of_pairs(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's ``*.jsonl`` files."""
    digest = hashlib.sha256()
    for file in pair_files(folder):
        digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def _rows(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects in a file with their line numbers; only a line feed ends a line, as JSON lines have it."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                what = "empty" if not line.strip() else f"not JSON ({error})"
                raise UserError(f"{file}:{number} is {what}; fix or remove that line") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number} is not a JSON object; fix or remove that line")
            yield number, row


def _require_texts(row: dict[str, object], names: tuple[str, ...], place: str) -> list[str]:
    """The values of some fields, each of them text that a tokenizer can read."""
    texts = []
    for name in names:
        if name not in row:
            raise UserError(f"{place} has no field {name}; each line needs {', '.join(names)}")
        value = row[name]
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: {name} is {value!r}, but it should be a text that is not empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{place}: {name} is {value!r}, which is not Unicode text; fix that line") from None
        texts.append(value)
    return texts
