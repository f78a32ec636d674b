"""Fetch BabyLM text from the Hugging Face Hub, into files named as `prepare` expects them.

palenka data fetch babylm-10m --output runs/text/babylm-10m
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

from palenka.data.corpus import SPLITS
from palenka.data.text.sources import find_sources
from palenka.ground.errors import UserError, system_error
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info
from palenka.ground.settings import Command

# What is known of these dataset repositories, from public code that reads them in 2026: the two of the training text
# hold <source>.train.txt at their root, for bnc_spoken, childes, gutenberg, open_subtitles, simple_wiki and
# switchboard; the other two hold <source>.dev and <source>.test. Not checked against the live Hub.
_DEV, _TEST = "BabyLM-community/BabyLM-dev", "BabyLM-community/BabyLM-Test"
TEXTS = {
    "babylm-10m": {"train": "BabyLM-community/BabyLM-2026-Strict-Small", "dev": _DEV, "test": _TEST},
    "babylm-100m": {"train": "BabyLM-community/BabyLM-2026-Strict", "dev": _DEV, "test": _TEST},
}
"""By name: each split's dataset repository."""

_BY_HAND = "download the text by hand from osf.io/ad7qg and put its *.train, *.dev and *.test files into one folder"


class FetchSettings(Command):
    """Fetch BabyLM text from the Hugging Face Hub."""

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    """Which text: babylm-10m or babylm-100m."""
    output: Path | None = None
    """Folder for the text; default: runs/text/NAME."""


@dataclass(frozen=True)
class _Download:
    """One split's repository, and the folder for its files."""

    repository: str
    split: str
    folder: Path

    def run(self) -> None:
        """Download the files, or those that are still missing, and name them ``<source>.<split>``.

        Raises:
            UserError: if the Hub does not serve them.
        """
        patterns = [f"*.{self.split}", f"*.{self.split}.txt"]
        try:
            snapshot_download(self.repository, repo_type="dataset", allow_patterns=patterns, local_dir=self.folder)
        except GatedRepoError:
            raise UserError(
                f"{self.repository} is gated: accept its terms at huggingface.co/datasets/{self.repository} and run "
                f"`hf auth login`, then fetch again, or {_BY_HAND}"
            ) from None
        except RepositoryNotFoundError:
            raise UserError(f"{self.repository} is not, or no longer, on the Hugging Face Hub; {_BY_HAND}") from None
        except (OSError, HTTPError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"cannot fetch {self.repository} ({reason.rstrip('.')}); connect to the network and run the command "
                f"again, or {_BY_HAND}"
            ) from None


def fetch(name: str, output: Path | None = None) -> Path:
    """Download a text of `TEXTS`; after an interruption, the same call downloads the missing files.

    Returns:
        The folder that holds it: `output`, by default ``runs/text/NAME``.

    Raises:
        UserError: for an unknown name, an output that holds something else, or a download that fails.
    """
    if name not in TEXTS:
        raise UserError(f"no text is called {name!r}; choose from {', '.join(TEXTS)}, or {_BY_HAND}")
    folder = output or Path("runs", "text", name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        find_sources([folder])
        info(f"{folder} holds text already; delete it to fetch it again")
        return folder
    # A fixed name, so that the next call finds the finished files.
    download = folder.with_name(f".{folder.name}.download")
    try:
        with sole_writer(folder):
            for split, repository in TEXTS[name].items():
                _Download(repository, split, download / split).run()
            _tidy(download)
            find_sources([download])
            download.replace(folder)
    except OSError as error:
        raise system_error(f"cannot write {folder}", error) from error
    info(f"{name} is in {folder}; prepare it with: palenka data prepare --config configs/corpora/{name}.yaml")
    return folder


def _tidy(folder: Path) -> None:
    """Keep only the text: remove the Hub's records and the ``.txt`` after each split."""
    for split in SPLITS:
        shutil.rmtree(folder / split / ".cache", ignore_errors=True)
        for path in (folder / split).rglob(f"*.{split}.txt"):
            path.rename(path.with_suffix(""))
