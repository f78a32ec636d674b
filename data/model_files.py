"""A model's directory: its configuration, its identity, whether it fits a corpus, and loading it for use."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from palenka.data.corpus import Corpus
from palenka.data.signals.manifest import TeacherIdentity
from palenka.data.text.tokenizer import hash_of_directory
from palenka.ground.errors import UserError
from palenka.ground.files import commit, damage_of, load_json, read_record, read_text, state_of
from palenka.ground.precision import dtype_of
from palenka.ground.settings import Precision

# Its bars for loading and saving would break up those of `progress.py`.
transformers_logging.disable_progress_bar()

MODEL_RECORD = "model.commit.json"
"""The commit record that our runs keep beside a model; models from elsewhere have none."""

_NOT_IDENTITY = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


def identity_of(directory: Path, precision: Precision) -> TeacherIdentity:
    """What makes the model in a directory the same model: a hash of its tensors, its configuration, its precision.

    Reads every weight once, about 1 s a gigabyte, one tensor in memory at a time.

    Raises:
        UserError: if the directory is not a model with safetensors weights, or not as a run of ours left it.
    """
    require_untouched(directory)
    config = {key: value for key, value in _read_config(directory).items() if key not in _NOT_IDENTITY}
    with _reading(directory):
        return TeacherIdentity(weights=_weights_hash(directory), config=config, precision=precision)


def commit_model(directory: Path, files: Iterable[str], **facts: object) -> None:
    """Record the checksums of a model's files, and facts about it: whoever reads the model compares them."""
    commit(directory, MODEL_RECORD, files, **facts)


def require_untouched(directory: Path) -> None:
    """Refuse a model that is not as it was committed; one from elsewhere, without a record, is what it is.

    Raises:
        UserError: naming the file.
    """
    if (directory / MODEL_RECORD).is_file() and (damage := damage_of(directory, MODEL_RECORD)):
        raise UserError(f"model {directory} is damaged: {damage}; restore that file, or train the model again")


def state_of_model(directory: Path) -> tuple[object, ...]:
    """What tells the files that a model is loaded from from others of the same name."""
    _read_config(directory)
    return tuple(state_of(path) for path in (directory / "config.json", *_weight_files(directory)))


def require_unchanged(directory: Path, state: tuple[object, ...]) -> None:
    """Refuse a model whose files were changed since they had a state: what was loaded may not be what was hashed.

    Raises:
        UserError: if they were.
    """
    if state_of_model(directory) != state:
        raise UserError(f"model {directory} was changed while it was read; leave it alone, and run the command again")


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
    _read_config(directory)
    with _reading(directory):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        positions = getattr(config, "max_position_embeddings", None)
        vocabulary_size = config.vocab_size
    if positions is not None:
        require_positions(f"{subject} {directory}", positions, length)
    if (found := hash_of_directory(directory)) != corpus.tokenizer_hash:
        raise UserError(
            f"{subject} {directory} has tokenizer {found}, but corpus {corpus.directory} was made with "
            f"{corpus.tokenizer_hash}, which maps text to other ids; use the corpus that the model was trained on, or "
            f"prepare one for it: palenka data prepare --tokenizer {directory} --sources TEXT --output CORPUS"
        )
    if vocabulary_size != corpus.vocabulary_size:
        raise UserError(
            f"{subject} {directory} has a vocabulary of {vocabulary_size} tokens, but its tokenizer has "
            f"{corpus.vocabulary_size}; give it the embeddings of its tokenizer"
        )


def require_positions(subject: str, positions: int, length: int) -> None:
    """Refuse windows that are longer than a model's positions."""
    if length > positions:
        raise UserError(
            f"windows have {length} tokens, but {subject} has {positions} positions; shorten windows.length, or give "
            "the model more positions (max_position_embeddings)"
        )


def load_model(directory: Path, device: torch.device, precision: Precision = "float32") -> PreTrainedModel:
    """A trained model on a device, ready to be run (not trained), its weights in a type; from safetensors only.

    Raises:
        UserError: if the weights are not those of the configuration; transformers would make up the missing ones.
    """
    with _reading(directory):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype_of(precision),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    model, report = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, report[problem])):
            kind = problem.removesuffix("_keys")
            raise UserError(f"model {directory} has {len(wrong)} {kind} tensors, such as {wrong[0]}; save it again")
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()  # no longer mapped from a file that may change
    model.to(device=device)  # type: ignore[call-arg]
    model.train(False)
    return model


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is not a Hugging Face model: it has no config.json; give a trained run's directory"
        )
    with _reading(directory):
        config = load_json(read_text(path))
        if not isinstance(config, dict):
            raise TypeError("config.json is not an object")
        return config


def _weights_hash(directory: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, however they are spread over files."""
    file_of: dict[str, Path] = {}
    for path in _weight_files(directory):
        with safe_open(path, framework="pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    digest = hashlib.sha256()
    for name, path in sorted(file_of.items()):
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads: one with all weights, or else those that its index names.

    Raises:
        UserError: if there are none, or adapters that would be loaded on top of them.
    """
    if (adapter := directory / "adapter_config.json").is_file():
        raise UserError(f"{adapter} would change the model when it is loaded; merge the adapter into it and save it")
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return sorted({directory / name for name in read_record(index)["weight_map"].values()})
    raise UserError(
        f"{directory} has no model*.safetensors weights; save it with save_pretrained (pickles are not loaded)"
    )


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Whatever transformers or safetensors raise about a model that they cannot read, as one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory} is not a causal language model that can be read ({type(error).__name__}: {reason}); "
            "save it again with save_pretrained"
        ) from error
