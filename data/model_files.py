"""A model's directory: its configuration, its identity, its fit for a corpus, and loading it."""

import hashlib
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from palenka.data.corpus import TOKENIZER_FOLDER, Corpus, require_files
from palenka.data.hub import Located
from palenka.data.signals.manifest import TeacherIdentity
from palenka.data.text.tokenizer import load_tokenizer, tokenizer_hash, vocabulary_size_of
from palenka.ground.errors import UserError, refusing
from palenka.ground.files import follow_umask, read_text, state_of
from palenka.ground.precision import dtype_of
from palenka.ground.records import commit, damage_of, load_json, read_record
from palenka.ground.settings import Precision

# Its progress bars for loading and saving would disturb those of `progress.py`.
transformers_logging.disable_progress_bar()

MODEL_RECORD = "model.commit.json"
"""The commit record of the runs' models; models from elsewhere have none."""

_NOT_IDENTITY = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


MOST_LAYERS = 1000
"""Transformers takes milliseconds for each, even before it reads a weight."""
_DROPOUTS = ("dropout", "pdrop", "dropout_prob", "dropout_rate", "dropout_p")
"""Ends of names of probabilities in configurations."""
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Names of the number of positions in configurations; a model without a bound has none of them."""


def identity_of(directory: Path, precision: Precision, source: str | None = None) -> TeacherIdentity:
    """The identity of the model in a directory: a hash of its tensors, its configuration, its precision.

    Reads every weight once, about 1 s per gigabyte, one tensor in memory at a time.

    Args:
        directory: of the model.
        precision: that it computes in.
        source: where on the Hub it came from; recorded, but not compared.

    Raises:
        UserError: if the directory is not a model with safetensors weights, or was changed since its run wrote it.
    """
    require_untouched(directory)
    config = {key: value for key, value in _read_config(directory).items() if key not in _NOT_IDENTITY}
    with _refusing(directory):
        return TeacherIdentity(weights=_weights_hash(directory), config=config, precision=precision, source=source)


def commit_model(directory: Path, files: Iterable[str], **facts: object) -> None:
    """Record the checksums of a model's files, and facts about it; every reader of the model compares them."""
    commit(directory, MODEL_RECORD, files, **facts)


def require_untouched(directory: Path) -> None:
    """Refuse a model that was changed since it was committed; a model without a record passes.

    Raises:
        UserError: naming the file.
    """
    if (directory / MODEL_RECORD).is_file() and (damage := damage_of(directory, MODEL_RECORD)):
        raise UserError(f"model {directory} is damaged: {damage}; restore that file, or train the model again")


def state_of_model(directory: Path) -> tuple[object, ...]:
    """The state of the files that a model is loaded from, to notice changes."""
    _read_config(directory)
    return tuple(state_of(path) for path in (directory / "config.json", *_weight_files(directory)))


def require_unchanged(directory: Path, state: tuple[object, ...]) -> None:
    """Refuse a model whose files have changed since this state: the loaded model may not be the hashed one.

    Raises:
        UserError: if they have.
    """
    if state_of_model(directory) != state:
        raise UserError(f"model {directory} was changed while it was read; leave it alone, and run the command again")


def config_of(directory: Path) -> PretrainedConfig:
    """The configuration of the model in a directory.

    Raises:
        UserError: if there is none that transformers can read without running the model's code.
    """
    written = _read_config(directory)
    if "auto_map" in written and written.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{directory} brings code of its own for its model ({written.get('model_type')}), which is never run here; "
            "choose a model whose class transformers has"
        )
    with _refusing(directory):
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    require_bounds(f"model {directory}", config)
    return config


def require_bounds(subject: str, config: PretrainedConfig) -> None:
    """Refuse a configuration whose model would take hours to build, or drops out with an impossible probability.

    Args:
        subject: the model, as the sentence's subject.
        config: of it.

    Raises:
        UserError: with the field.
    """
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UserError(f"{subject} has num_hidden_layers {layers:,}, but {MOST_LAYERS:,} at most are built; fix that")
    for name, value in text.to_dict().items():
        if name.endswith(_DROPOUTS) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise UserError(f"{subject} has {name} {value}, but it should be a probability; fix that")


def positions_of(config: PretrainedConfig) -> int | None:
    """The longest window that a model takes; None for any length."""
    text = config.get_text_config()
    return next((int(found) for name in _POSITIONS if (found := getattr(text, name, None))), None)


def require_fit(what: str, model: Located, corpus: Corpus, length: int) -> None:
    """Refuse a model whose tokenizer differs from a corpus's, or without blocks or positions for its windows.

    A model may have more logits than the tokenizer has tokens (many round the number up); these are dropped.

    Args:
        what: role of the model, such as ``"teacher"``.
        model: where it is.
        corpus: that it will read.
        length: tokens in a window.

    Raises:
        UserError: with both sides.
    """
    directory, subject = model.directory, f"{what} {model.name}"
    config = config_of(directory)
    vocabulary_size = config.get_text_config().vocab_size
    tokenizer = load_tokenizer(directory)
    if (found := tokenizer_hash(tokenizer)) != corpus.tokenizer_hash:
        raise UserError(
            f"{subject} has another tokenizer ({vocabulary_size_of(tokenizer):,} tokens, {found[:12]}) than corpus "
            f"{corpus.directory} ({corpus.vocabulary_size:,} tokens, {corpus.tokenizer_hash[:12]}); prepare text with "
            f"that of the {what}, `palenka data prepare --sources TEXT --output CORPUS --tokenizer {model.name}`, or "
            f"choose a {what} with that of the corpus"
        )
    if vocabulary_size < corpus.vocabulary_size:
        raise UserError(
            f"{subject} has logits for {vocabulary_size:,} tokens, but its tokenizer, that of corpus "
            f"{corpus.directory}, has {corpus.vocabulary_size:,}; give the model that the tokenizer belongs to"
        )
    if getattr(config.get_text_config(), "num_hidden_layers", 1) == 0:
        raise UserError(
            f"{subject} has no blocks: num_hidden_layers is 0 in its config.json; give a {what} that has some"
        )
    require_positions(subject, positions_of(config), length)


def require_positions(subject: str, positions: int | None, length: int) -> None:
    """Refuse windows that are longer than a model's positions."""
    if positions is not None and length > positions:
        raise UserError(
            f"windows have {length} tokens, but {subject} has {positions} positions; shorten windows.length, or give "
            "the model more positions (max_position_embeddings)"
        )


def load_model(directory: Path, device: torch.device, precision: Precision = "float32") -> PreTrainedModel:
    """A trained model on a device in evaluation mode, with weights of a type, from safetensors only.

    Attention is torch's scaled dot product if transformers has it for the model.

    Raises:
        UserError: if weights are missing or superfluous; transformers would fill missing ones with random numbers.
    """
    config_of(directory)
    _weight_files(directory)
    with _refusing(directory):
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


def write_model(model: PreTrainedModel, corpus: Corpus, directory: Path) -> None:
    """Write a model and an exact copy of its corpus's tokenizer, so that both load with `from_pretrained`.

    Raises:
        UserError: if the tokenizer is not the one that the corpus was opened with.
    """
    model.save_pretrained(directory)
    for path in (corpus.directory / TOKENIZER_FOLDER).iterdir():
        shutil.copyfile(path, directory / path.name)
    require_files(corpus.directory)
    follow_umask(directory)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is not a Hugging Face model: it has no config.json; give {_instead_of(directory)}"
        )
    with _refusing(directory):
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
        UserError: if there are none, or if adapters would be loaded on top of them.
    """
    if (adapter := directory / "adapter_config.json").is_file():
        raise UserError(f"{adapter} would change the model when it is loaded; merge the adapter into it and save it")
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        with _refusing(directory):
            return sorted({directory / name for name in read_record(index)["weight_map"].values()})
    raise UserError(f"{directory} has no model*.safetensors weights; give {_instead_of(directory)}")


def _instead_of(directory: Path) -> str:
    """The remedy for a directory or file that no model can be loaded from."""
    there = [directory] if directory.is_file() else sorted(directory.glob("*")) if directory.is_dir() else []
    if any(path.suffix == ".gguf" for path in there):
        return "a directory instead of GGUF, which `palenka data convert FILE.gguf --output DIR` makes"
    if any(path.suffix in (".bin", ".pt", ".pth", ".ckpt") for path in there):
        return (
            "a directory with safetensors: pickles such as *.bin are never loaded, for they can run code; load the "
            "model where you trust it and save it with save_pretrained"
        )
    return "the directory of a model saved with save_pretrained, such as a trained run, or an id on the Hub"


def _refusing(directory: Path) -> AbstractContextManager[None]:
    """Turn any error of the libraries about an unreadable model into one sentence."""
    what = f"{directory} is not a causal language model that can be read"
    return refusing(what, "save it again with save_pretrained")
