"""Datasets on the Hugging Face Hub as sources of text: ``org/name``, ``org/name@REVISION``, ``org/name:CONFIGURATION``.

The `datasets` library, an extra, reads them as a stream; nothing is kept on disk.
"""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palenka.data.text.readers import Advance, Piece, ReadingOptions
from palenka.data.text.records import documents_of, require_datasets, texts_of
from palenka.data.text.source import TextSource
from palenka.ground.errors import UserError

_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<configuration>[\w.-]+))?")
_SPLITS = {"train": "train", "validation": "dev", "valid": "dev", "dev": "dev", "test": "test"}


@dataclass(frozen=True)
class HubSplit(TextSource):
    """A split of a dataset at a commit.

    Attributes:
        repository: such as ``org/name``.
        commit: of the repository.
        configuration: one of several that a dataset may have.
        its_split: the dataset's name of the split.
        options: for reading.
    """

    repository: str
    commit: str
    configuration: str | None
    its_split: str
    options: ReadingOptions

    @property
    def identity(self) -> str:
        """The commit."""
        return self.commit

    @property
    def num_bytes(self) -> None:
        """Not known before it is read."""
        return None

    @property
    def cleaner(self) -> str:
        """The cleaner of unknown sources, if cleaning was asked for."""
        return "general" if self.options.cleaner == "babylm" else "none"

    def documents(self, advance: Advance) -> Iterator[Piece]:
        """The documents, one per record; errors of the network are reported as such."""
        datasets = require_datasets(self.repository)
        try:
            stream = datasets.load_dataset(
                self.repository, self.configuration, split=self.its_split, revision=self.commit, streaming=True
            )
            for piece in documents_of(texts_of(self.name, stream, self.options.text_field), self.options):
                advance(len(piece.text))
                yield piece
        except UserError:
            raise
        except Exception as error:  # of the library, its formats and the network
            raise _unreadable(self.name, error) from error


def is_dataset(path: Path) -> bool:
    """Whether a source is named like a dataset on the Hub and does not exist on this machine."""
    found = _ID.fullmatch(str(path)) is not None and not glob.has_magic(str(path))
    return found and not path.exists() and not path.is_symlink() and not path.parent.exists()


def find_dataset(path: Path, options: ReadingOptions) -> list[TextSource]:
    """The splits of a dataset on the Hub, at the commit that its revision has now.

    Raises:
        UserError: if the Hub does not give them.
    """
    found = _ID.fullmatch(str(path))
    assert found is not None
    name, configuration = found["name"], found["configuration"]
    datasets = require_datasets(str(path))
    try:
        from huggingface_hub import HfApi

        commit = str(HfApi().dataset_info(name, revision=found["revision"]).sha)
        splits = datasets.get_dataset_split_names(name, configuration, revision=commit)
    except Exception as error:  # of the library and the network
        raise _unreadable(str(path), error) from error
    # A commit and no date, so that the same dataset is always the same source.
    label = f"{name}@{commit}" + (f":{configuration}" if configuration else "")
    return [
        HubSplit(f"{label}/{split}", _SPLITS[split], name, commit, configuration, split, options)
        for split in splits
        if split in _SPLITS
    ]


def _unreadable(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{name} is no file or folder here, and cannot be read from the Hugging Face Hub ({reason}); check its name, "
        "or give files"
    )
