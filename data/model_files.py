"""What the files of a model say before it is loaded: its configuration, its fingerprint, whether it fits a corpus."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from configs.errors import UserError
from data.corpus import Corpus
from data.records import sha256_of_file

# Its bars for loading and saving would break up those of `progress.py`.
transformers_logging.disable_progress_bar()


def load_model(directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A trained model on a device, ready to be run (not trained) in a type; from safetensors only."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, use_safetensors=True)
    model.to(device=device)  # type: ignore[call-arg]
    model.train(False)
    return model


def read_config(directory: Path) -> dict[str, Any]:
    """A model's Hugging Face configuration as it is written.

    Raises:
        UserError: if the directory is not a model.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is not a Hugging Face model: it has no config.json; give a trained run's directory"
        )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def weights_hash(directory: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, however they are spread over files.

    Reads every weight once, about 1 s a gigabyte, one tensor in memory at a time.

    Raises:
        UserError: if there are no safetensors files; pickled weights are never loaded.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{directory} has no *.safetensors weights; save the model with save_pretrained (pickles are not loaded)"
        )
    file_of: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    digest = hashlib.sha256()
    for name, path in sorted(file_of.items()):
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def require_fit(subject: str, directory: Path, corpus: Corpus, length: int) -> None:
    """Refuse a model that does not know a corpus's tokens, or has too few positions for its windows.

    Args:
        subject: what the model is, as the sentence's subject, such as ``"teacher"``.
        directory: of the model.
        corpus: what it is to read.
        length: tokens in a window.

    Raises:
        UserError: naming both sides.
    """
    read_config(directory)
    config = AutoConfig.from_pretrained(directory)
    require_positions(f"{subject} {directory}", config.max_position_embeddings, length)
    if config.vocab_size != corpus.vocabulary_size:
        raise UserError(
            f"{subject} {directory} has a vocabulary of {config.vocab_size} tokens, but corpus {corpus.directory} has "
            f"{corpus.vocabulary_size}; both must come from one tokenizer"
        )
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.is_file():
        raise UserError(
            f"{subject} {directory} has no tokenizer.json; save the tokenizer that it was trained with there"
        )
    if (found := sha256_of_file(tokenizer)) != corpus.tokenizer_hash:
        raise UserError(
            f"{subject} {directory} was trained with tokenizer {found}, but corpus {corpus.directory} was made with "
            f"{corpus.tokenizer_hash}; use the corpus that it was trained on, or train it on this one"
        )


def require_positions(subject: str, positions: int, length: int) -> None:
    """Refuse windows that are longer than a model's positions."""
    if length > positions:
        raise UserError(
            f"windows have {length} tokens, but {subject} has {positions} positions; shorten windows.length, or give "
            "the model more positions (max_position_embeddings)"
        )
