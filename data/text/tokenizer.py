"""Fast tokenizers in Hugging Face format: reading and writing, identity, and document boundaries."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from palenka.ground.errors import UserError, refusing

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<pad>", "<s>", "</s>"
SPECIAL_TOKENS = (PAD, START, END)
"""The special tokens of a learnt tokenizer, in the order of their ids: 0, 1, 2."""

_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
_PROBE = (
    "The cat's 12,345 mice DON'T  run!\n\n\tNaïve café, fi ½ … e\u0301 — “quotes” <s></s> <|endoftext|> [CLS]\r\n"
    "def f(x):\n    return x**2  # ok\u00a0\u200b 字字，漢字。ไม่มีวรรค Ünïcödé Привет 🙂👍🏽 http://a.b/c?d=e_f \n"
)
# Fields that do not affect ids: defaults that some versions omit, and settings of offsets.
_IMMATERIAL = ("trim_offsets",)


def tokenizer_files(directory: Path) -> list[Path]:
    """Everything in a directory that transformers may make a tokenizer from, sorted."""
    return sorted({file for pattern in _PATTERNS for file in directory.glob(pattern) if file.is_file()})


def tokenizer_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The identity of a tokenizer: equal for tokenizers that map text to the same ids, however they were saved.

    SHA-256 over vocabulary, merges, normaliser, pre-tokenizer and added tokens, each as the tokenizers library writes
    them without defaults, and over the ids of a fixed text; some 0.5 s for 150,000 tokens. The special tokens that it
    adds to a text, and the names of bos and eos, are not part of it.
    """
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    mapping: dict[str, Any] = {name: _material(said.get(name)) for name in ("added_tokens", "normalizer", "model")}
    mapping["pre_tokenizer"] = _material(_flat(said.get("pre_tokenizer")))
    mapping["normalizer"] = _material(_flat(said.get("normalizer")))
    mapping["probe"] = tokenizer(_PROBE, add_special_tokens=False).input_ids
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def hash_of_directory(directory: Path) -> str:
    """`tokenizer_hash` of the tokenizer in a directory.

    Raises:
        UserError: if there is no readable one.
    """
    return tokenizer_hash(load_tokenizer(directory))


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer in a directory, as `transformers.AutoTokenizer` gives it.

    Raises:
        UserError: if there is none, it cannot be read, or it is not a fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give one that holds a tokenizer, or an id on the Hub")
    if not tokenizer_files(directory):
        raise UserError(f"{directory} has no tokenizer; save its tokenizer there (tokenizer.json)")
    # The library's Rust side raises bare exceptions.
    with refusing(
        f"the tokenizer in {directory} cannot be read", "save it again with save_pretrained, as tokenizer.json"
    ):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer(_PROBE, verbose=False)  # some mistakes in its files show only now
    # A tokenizer in Python has no pipeline to compare, and does not run on all cores.
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{directory} has a slow tokenizer ({type(tokenizer).__name__}, written in Python), but a fast one is "
            "needed; convert it to a tokenizer.json (transformers.convert_slow_tokenizer), or choose a model that has "
            "one"
        )
    return tokenizer


def save_learnt(tokenizer: "Tokenizer", directory: Path) -> None:
    """Write a directory that `transformers.AutoTokenizer` loads, with our special tokens declared.

    Text that spells a special token, such as ``<s>``, is encoded as any other text.
    """
    from transformers import PreTrainedTokenizerFast

    save_tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, split_special_tokens=True
        ),
        directory,
    )


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", directory: Path) -> None:
    """Write a directory from which the same tokenizer can be loaded.

    Raises:
        UserError: if transformers reads a tokenizer there that maps text to other ids.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # The library raises a bare Exception for a full disk; writing the same text here first raises an OSError.
    (directory / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    tokenizer.save_pretrained(directory)
    if hash_of_directory(directory) != tokenizer_hash(tokenizer):
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} maps text to other ids once transformers has saved and loaded it; "
            "save it as a PreTrainedTokenizerFast and give that directory"
        )


class Boundaries(NamedTuple):
    """The ids before and after each document."""

    before: list[int]
    after: list[int]


def boundaries_of(
    tokenizer: "PreTrainedTokenizerFast", start: bool | str | None = None, end: bool | str | None = None
) -> Boundaries:
    """The tokens around each document.

    Args:
        tokenizer: its convention is the default: the tokens that it adds to a text when it is called; if none, its eos
            after the document; without eos its bos before it; without either, none.
        start: True for its bos, False for none, or a token; None for the convention.
        end: the same with its eos.

    Raises:
        UserError: if it has no such token.
    """
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    opens = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    own = Boundaries(whole[:opens], whole[opens + len(bare) :])
    if not any(own):
        bos, eos = ([] if token is None else [token] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
        own = Boundaries([], eos) if eos else Boundaries(bos, [])
    return Boundaries(
        own.before if start is None else _token_of(tokenizer, "document_start", start, "bos"),
        own.after if end is None else _token_of(tokenizer, "document_end", end, "eos"),
    )


def token_bytes(tokenizer: "PreTrainedTokenizerFast", vocabulary_size: int) -> list[bytes]:
    """The UTF-8 bytes of normalised text that each token stands for, [V]; none for special tokens.

    Byte-level tokens are spelt in an alphabet of bytes; elsewhere ``▁`` is a space, ``<0x0A>`` a byte, and of WordPiece
    a token without ``##`` begins with the space before its word.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    kind = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = json.dumps(kind["decoder"] or {}) + json.dumps(kind["pre_tokenizer"] or {})
    prefix = kind["model"].get("continuing_subword_prefix") if kind["model"]["type"] == "WordPiece" else None
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.all_special_ids)

    def spelt(number: int, name: str | None) -> bytes:
        if name is None or number in special:
            return b""
        if '"ByteLevel"' in decoder:
            return bytes(map(alphabet.get, name)) if alphabet.keys() >= set(name) else name.encode()  # type: ignore[arg-type]
        if prefix:
            return name.removeprefix(prefix).encode() if name.startswith(prefix) else f" {name}".encode()
        if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            return bytes.fromhex(byte[1])
        return name.replace("▁", " ").encode()

    names = tokenizer.convert_ids_to_tokens(list(range(vocabulary_size)))
    return [spelt(number, name) for number, name in enumerate(names)]


def _token_of(tokenizer: "PreTrainedTokenizerFast", option: str, given: bool | str, kind: str) -> list[int]:
    if given is False:
        return []
    token = getattr(tokenizer, f"{kind}_token") if given is True else given
    if token is None:
        raise UserError(f"{option} is true, but the tokenizer has no {kind} token; give a token that it has, or false")
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise UserError(f"{option} is {token!r}, but the tokenizer has no such token; give one that it has, or false")
    return [number]


def vocabulary_size_of(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The largest id plus one: the number of tokens, unless ids are skipped."""
    return max(tokenizer.get_vocab().values()) + 1


def _flat(component: Any) -> Any:  # noqa: ANN401 - JSON
    """A sequence of components without nested sequences; a sequence of one becomes that component."""
    if not isinstance(component, Mapping) or component.get("type") != "Sequence":
        return component
    (parts,) = (value for key, value in component.items() if key != "type")
    flat: list[Any] = []
    for part in map(_flat, parts):
        flat += part["parts"] if part.get("type") == "Sequence" else [part]
    return flat[0] if len(flat) == 1 else {"type": "Sequence", "parts": flat}


def _material(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A component without absent or disabled fields, which some versions write and others omit."""
    if isinstance(value, Mapping):
        said = {key: _material(inner) for key, inner in value.items() if key not in _IMMATERIAL}
        return {key: inner for key, inner in said.items() if inner is not None and inner is not False and inner != ""}
    return [_material(inner) for inner in value] if isinstance(value, list) else value
