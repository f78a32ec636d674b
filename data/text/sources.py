"""Where raw text comes from: files in folders, files by name or pattern, and datasets on the Hugging Face Hub.

Each source has a split, an identity and documents.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import palenka.data.text.plain_text
import palenka.data.text.records  # noqa: F401 - they register their readers
from palenka.data.text.babylm import BabyLMText
from palenka.data.text.hub_text import find_dataset, is_dataset
from palenka.data.text.readers import READERS, Advance, Piece, Reader, ReadingOptions
from palenka.data.text.source import TextSource
from palenka.ground.errors import UserError
from palenka.ground.files import resolved, sha256_of_file
from palenka.ground.progress import info

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
}


@dataclass(frozen=True)
class SourceFile(TextSource):
    """One file of raw text.

    Attributes:
        path: where it is.
        reader: of its format.
    """

    path: Path
    reader: Reader

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of the file."""
        return sha256_of_file(self.path)

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        return self.path.stat().st_size

    @property
    def cleaner(self) -> str:
        """The cleaning of its text."""
        return self.reader.cleaner(self.path)

    def documents(self, advance: Advance) -> Iterator[Piece]:
        """The documents that the file's reader yields."""
        return self.reader.documents(self.path, advance)

    def remark(self) -> str | None:
        """The reader's remark about the file."""
        return self.reader.remark(self.path)


def find_sources(given: Sequence[Path], options: ReadingOptions | None = None) -> list[TextSource]:
    """The sources that a user names, sorted by their names.

    Args:
        given: folders (every file at any depth whose suffix a reader knows), files, patterns, and ids of datasets on
            the Hub.
        options: for their readers.

    Raises:
        UserError: if one is missing or has no known format, a link is dangling, or none is for training.
    """
    options = options or ReadingOptions()
    readers = {suffix: reader(options) for reader in READERS.values() for suffix in reader.suffixes}
    files: list[TextSource] = []
    roots = [_root_of(path) for path in given if not is_dataset(path)]
    root = Path(os.path.commonpath([path.absolute() for path in roots])) if roots else Path()
    for path in given:
        if is_dataset(path):
            files += find_dataset(path, options)
        elif path.is_dir():
            files += _in_folder(path, root, readers)
        else:
            files += [_file(found, _root_of(path), root, readers) for found in _named(path)]
    unique = {file.name: file for file in files}
    found = sorted(unique.values(), key=lambda file: file.name)
    if not any(file.split == "train" for file in found):
        names = ", ".join(map(str, given))
        other = f"only {', '.join(f'{file.name} ({file.split})' for file in found)}" if found else "no text"
        raise UserError(
            f"sources {names} holds {other}; name the training text SOURCE.train, such as childes.train, or give files "
            f"that end in one of {', '.join(suffix for suffix in readers if suffix not in BabyLMText.suffixes)}"
        )
    return found


def _in_folder(folder: Path, root: Path, readers: Mapping[str, Reader]) -> list[SourceFile]:
    """The files in a folder that readers know; if some name their split by their suffix, all must."""
    paths = [path for path in _walk(folder) if _reader_of(path, readers)]
    if not any(isinstance(_reader_of(path, readers), BabyLMText) for path in paths):
        return [_file(path, folder, root, readers) for path in paths]
    files = []
    for path in paths:
        if split := _split_in([path.name]):
            files.append(_file(path, folder, root, readers, split))
        elif path.suffix == ".txt":
            info(f"{path} is not read: it names no split, as the text beside it does")
        else:
            raise UserError(f"{path} is of no split; name it {path.stem}.train{path.suffix}, or .dev or .test instead")
    return files


def _file(path: Path, folder: Path, root: Path, readers: Mapping[str, Reader], split: str | None = None) -> SourceFile:
    """A file of a source; its split is in its name or in a folder inside the source, else train."""
    reader = _reader_of(path, readers)
    if reader is None:
        raise UserError(f"no reader knows the format of {path}; its name should end in one of {', '.join(readers)}")
    inside = path.relative_to(folder).parts
    name = os.path.relpath(path.absolute(), root)
    return SourceFile(name=Path(name).as_posix(), split=split or _split_in(inside) or "train", path=path, reader=reader)


def _split_in(parts: Sequence[str]) -> str | None:
    """The split in a path: the file's name comes before folders, and the end of a name before its beginning."""
    for part in reversed(parts):
        for word in reversed(re.split(r"[._-]", part.lower())):
            if word in _SPLIT_NAMES:
                return _SPLIT_NAMES[word]
    return None


def _root_of(path: Path) -> Path:
    """The folder that names are relative to."""
    if path.is_dir():
        return path
    fixed = path.parent
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return fixed


def _named(path: Path) -> list[Path]:
    """The files that a name or a pattern stands for.

    Raises:
        UserError: if there are none.
    """
    if path.is_file():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    if not found:
        problem = "leads nowhere" if path.is_symlink() else "does not exist"
        raise UserError(
            f"sources {path} {problem}; give the folder that holds the text, files, a pattern such as text/*.jsonl, or "
            "the id of a dataset on the Hugging Face Hub"
        )
    return found


def _walk(folder: Path, within: tuple[Path, ...] = ()) -> Iterable[Path]:
    """The files in a folder at any depth, links followed, nothing hidden.

    Raises:
        UserError: if a link is dangling, or leads to a folder that contains it.
    """
    here = resolved(folder)
    if here in within:
        raise UserError(f"{folder} is a link to a folder that it is in; remove the link")
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*within, here))
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there; fix or remove the link")


def _reader_of(path: Path, readers: Mapping[str, Reader]) -> Reader | None:
    """The reader of the longest suffix that a name ends with."""
    ends = ("".join(path.suffixes[start:]) for start in range(len(path.suffixes)))
    return next((readers[end] for end in ends if end in readers), None)
