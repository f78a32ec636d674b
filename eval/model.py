"""The measured model and its tokenizer, loaded once, when a suite first needs them."""

from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from palenka.data.hub import locate_model
from palenka.data.model_files import identity_of, load_model, positions_of, require_unchanged, state_of_model
from palenka.data.text.tokenizer import load_tokenizer, tokenizer_files, tokenizer_hash
from palenka.eval.suite import PairPrecision, hash_of_files
from palenka.ground.errors import UserError
from palenka.ground.files import resolved
from palenka.ground.processes import open_processes
from palenka.ground.records import read_record

_LEAST_KNOWN_SHARE = 0.5
"""Models round their vocabulary up by some percent; a tokenizer with far fewer tokens does not match."""


class EvaluatedModel:
    """A causal language model in Hugging Face format, with its tokenizer.

    Args:
        model: its directory, or its id on the Hugging Face Hub.
    """

    def __init__(self, model: Path) -> None:
        self.located = locate_model(model)
        self.directory = self.located.directory
        self.name = model.name if self.located.source else resolved(model).name
        self._loaded: dict[PairPrecision, PreTrainedModel] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity of the model: its tensors, its configuration, its tokenizer (None without one).

        Raises:
            UserError: if the directory is not a model with safetensors weights.
        """
        self._state = state_of_model(self.directory)
        model = identity_of(self.directory, "float32")
        return {"weights": model.weights, "config": model.config, "tokenizer": _hash_of_tokenizer(self.directory)}

    def load(self, precision: PairPrecision = "float32") -> PreTrainedModel:
        """The model on its device in evaluation mode, with weights of a type.

        Raises:
            UserError: if the weights do not match the configuration or the identity.
        """
        if precision not in self._loaded:
            _ = self.identity
            self._loaded[precision] = load_model(self.directory, open_processes().device, precision)
            require_unchanged(self.directory, self._state)
        return self._loaded[precision]

    @property
    def parameters(self) -> int:
        """Number of parameters; tied weights count once."""
        return int(self.load().num_parameters())

    @property
    def vocabulary_size(self) -> int:
        """Number of its logits."""
        return int(self.load().config.get_text_config().vocab_size)

    @property
    def positions(self) -> int | None:
        """Number of its positions; None for no limit."""
        return positions_of(self.load().config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer in its directory.

        Raises:
            UserError: if there is none, it cannot be read, does not match the model's vocabulary, or is not the one
                that the model's run recorded.
        """
        if self.identity["tokenizer"] is None:
            raise UserError(f"model {self.directory} has no tokenizer beside it; save its tokenizer there")
        tokenizer = load_tokenizer(self.directory)
        if _hash_of_tokenizer(self.directory) != self.identity["tokenizer"]:
            raise UserError(f"the tokenizer in {self.directory} was changed while it was read; run the command again")
        _require_recorded(self.directory, tokenizer)
        if not _LEAST_KNOWN_SHARE * self.vocabulary_size <= len(tokenizer) <= self.vocabulary_size:
            raise UserError(
                f"the tokenizer in {self.directory} has {len(tokenizer)} tokens, but the model has a vocabulary of "
                f"{self.vocabulary_size}; put the tokenizer that the model was trained with into its directory"
            )
        return tokenizer


def _hash_of_tokenizer(directory: Path) -> str | None:
    """SHA-256 over the names and bytes of a model directory's tokenizer files."""
    files = tokenizer_files(directory)
    return hash_of_files(files) if files else None


def _require_recorded(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare a run's tokenizer with the one of its corpus, which the run recorded; other models have no record."""
    record = directory / "inputs.json"
    if not record.is_file():
        return
    expected, found = read_record(record).get("tokenizer"), tokenizer_hash(tokenizer)
    if expected not in (None, found):
        raise UserError(
            f"the tokenizer in {directory} is {found}, but the model was trained with tokenizer {expected}; put the "
            "tokenizer that the model was trained with into its directory"
        )
