"""Models and tokenizers as people name them: a directory, or an id on the Hugging Face Hub, such as ``org/name``.

``org/name@REVISION`` names a branch, a tag or a commit. Downloads lie in the Hub's own cache on this machine, so each
is fetched once and works without a network afterwards. Pickles and code are never fetched.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from palenka.ground.errors import UserError

_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+|[\w.-]+)(@(?P<revision>[\w./-]+))?")
_TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"]
_MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
]


@dataclass(frozen=True)
class Located:
    """The model or tokenizer that a name stands for.

    Attributes:
        name: as the user wrote it.
        directory: on this machine.
        source: ``org/name@COMMIT`` if it came from the Hub; None for a directory of the user.
    """

    name: Path
    directory: Path
    source: str | None = None


def locate_model(name: Path) -> Located:
    """A model with its tokenizer, by directory or Hub id; see `_locate`."""
    return _locate(name, "model", [*_MODEL_FILES, *_TOKENIZER_FILES])


def locate_tokenizer(name: Path) -> Located:
    """A tokenizer, by directory or Hub id, without the weights beside it; see `_locate`."""
    return _locate(name, "tokenizer", ["config.json", *_TOKENIZER_FILES])


def _locate(name: Path, what: str, files: list[str]) -> Located:
    """The directory of a name: an existing directory comes before an id; missing files are fetched.

    Raises:
        UserError: if the name is an id that the Hub does not serve.
    """
    found = _ID.fullmatch(str(name))
    # If its first part is a folder here, the name is a mistyped path.
    if name.exists() or found is None or (len(name.parts) > 1 and Path(name.parts[0]).exists()):
        return Located(name, name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = found["name"], found["revision"]
    unknown = f"{name} is no directory here, and the Hugging Face Hub has no such {what}"
    try:
        # Folders in a repository hold the same model in other formats.
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=files, ignore_patterns="*/*"))
    except GatedRepoError:
        raise UserError(
            f"{repository} is gated: accept its terms at huggingface.co/{repository} and run `hf auth login`, then run "
            "the same command again"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} has no revision {revision}; give a branch, a tag or a commit of it") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{unknown}; give a directory, or an id such as HuggingFaceTB/SmolLM2-135M") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{name} is no directory here, and cannot be fetched from the Hugging Face Hub ({reason.rstrip('.')}); "
            "connect to the network, or give a directory"
        ) from None
    return Located(name, snapshot, f"{repository}@{snapshot.name}")
