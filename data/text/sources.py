"""The files of raw text in a folder: which split each belongs to, and who reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import palenka.data.text.babylm  # noqa: F401 - registers its reader
from palenka.data.corpus import SPLITS
from palenka.data.text.readers import READERS, Reader
from palenka.ground.errors import UserError


@dataclass(frozen=True)
class SourceFile:
    """One file of raw text.

    Attributes:
        path: where it is.
        name: its path relative to the folder of the sources, with forward slashes.
        split: ``"train"``, ``"dev"`` or ``"test"``.
        reader: of its format.
    """

    path: Path
    name: str
    split: str
    reader: Reader


def find_sources(folder: Path) -> list[SourceFile]:
    """The files at any depth that a reader knows by their suffix, sorted by their relative path.

    Raises:
        UserError: if the folder is missing or a file, holds no such files or none for training, or one is of no split.
    """
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"sources {folder} {problem}; give the folder that holds the *.train and *.dev files")
    readers = {suffix: reader() for reader in READERS.values() for suffix in reader.suffixes}
    files = [
        SourceFile(path, path.relative_to(folder).as_posix(), _split_of(path), reader)
        for path in folder.rglob("*")
        if (reader := _reader_of(path, readers)) and path.is_file()
    ]
    if not any(file.split == "train" for file in files):
        other = f"only {', '.join(sorted(file.name for file in files))}" if files else "no *.train files"
        raise UserError(f"sources {folder} holds {other}; name the training text SOURCE.train, such as childes.train")
    return sorted(files, key=lambda file: file.name)


def _reader_of(path: Path, readers: Mapping[str, Reader]) -> Reader | None:
    """The reader of the longest suffix that a name ends with."""
    ends = ("".join(path.suffixes[start:]) for start in range(len(path.suffixes)))
    return next((readers[end] for end in ends if end in readers), None)


def _split_of(path: Path) -> str:
    for suffix in reversed(path.suffixes):
        if suffix[1:] in SPLITS:
            return suffix[1:]
    raise UserError(f"{path} is of no split; name it {path.stem}.train{path.suffix}, or .dev or .test instead")
