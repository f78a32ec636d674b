"""The tokenizer beside a model: loading it, its identity, and whether it is the model's."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from palenka.ground.errors import UserError
from palenka.ground.files import read_record, sha256_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
"""Everything that transformers may make a tokenizer from."""
_LEAST_KNOWN_SHARE = 0.5
"""Models round their vocabulary up by some percent; a tokenizer with far fewer tokens is another one."""


def hash_of_tokenizer(directory: Path) -> str:
    """SHA-256 over the names and bytes of a model directory's tokenizer files.

    Raises:
        UserError: if there are none.
    """
    files = sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()})
    if not files:
        raise UserError(f"model {directory} has no tokenizer beside it; save its tokenizer there")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def load_model_tokenizer(directory: Path, vocabulary_size: int) -> "PreTrainedTokenizerBase":
    """The tokenizer in a model's directory.

    Raises:
        UserError: if it cannot be read, does not match a model of `vocabulary_size` tokens, or is not the one that one
            of our runs was trained with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library's Rust side raises bare exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the tokenizer in {directory} cannot be read ({type(error).__name__}: {reason}); save it again"
        ) from error
    _require_recorded(directory)
    if not _LEAST_KNOWN_SHARE * vocabulary_size <= len(tokenizer) <= vocabulary_size:
        raise UserError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, but the model has a vocabulary of "
            f"{vocabulary_size}; put the tokenizer that the model was trained with into its directory"
        )
    return tokenizer


def _require_recorded(directory: Path) -> None:
    """Hold a run's tokenizer against the one of its corpus, which the run recorded; other models have no record."""
    record, tokenizer = directory / "inputs.json", directory / "tokenizer.json"
    if not record.is_file() or not tokenizer.is_file():
        return
    expected, found = read_record(record).get("tokenizer"), sha256_of_file(tokenizer)
    if expected not in (None, found):
        raise UserError(
            f"{tokenizer} is {found}, but the model was trained with tokenizer {expected}; put the tokenizer that the "
            "model was trained with into its directory"
        )
