"""Evaluation protocols: which tokens of a text a model reads, and which of them are scored.

`babylm-2024` is that of the published tables (lm-eval), `babylm-2025` that of the later pipeline. Their figures are not
interchangeable; docs/evaluation.md describes both in full.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from palenka.eval.choices import Choice, Completion
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Protocol = Literal["babylm-2024", "babylm-2025"]


class ScoredTokens(NamedTuple):
    """Tokens; those from `start` on are scored, each given all tokens before it."""

    tokens: tuple[int, ...]
    start: int


def encode_choices(
    choices: Sequence[Choice],
    protocol: Protocol,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary_size: int,
    positions: int | None,
) -> list[ScoredTokens]:
    """The options of every choice in order, as a protocol encodes them.

    Args:
        choices: all with contexts, or all without.
        protocol: decides on prefix, leading space and special tokens.
        tokenizer: the model's.
        vocabulary_size: of the model.
        positions: of the model; None for no limit. The last token is predicted and not read, so one more token fits.

    Raises:
        UserError: with file and line, for a text that does not fit the model or without scored tokens.
    """
    options = [(choice, option) for choice in choices for option in choice.options]
    encode = {"babylm-2024": _encode_2024, "babylm-2025": _encode_2025}[protocol]
    encoded = encode([option for _, option in options], tokenizer)
    for (choice, option), (tokens, start) in zip(options, encoded, strict=True):
        if not 1 <= start < len(tokens):
            raise UserError(
                f"{choice.place}: {option.text!r} gives no token that {protocol} scores; fix or remove that line"
            )
        require_fit(choice.place, tokens, vocabulary_size, positions)
    return encoded


class TooLongError(UserError):
    """A text has more tokens than a model has positions."""


def require_fit(place: str, tokens: Sequence[int], vocabulary_size: int, positions: int | None) -> None:
    """Refuse a text with more tokens than a model has positions, or with tokens outside its vocabulary.

    Raises:
        TooLongError, UserError: with the place of the text.
    """
    if positions is not None and len(tokens) - 1 > positions:
        raise TooLongError(
            f"{place} has {len(tokens) - 1} tokens before its last, but the model has {positions} positions; "
            "nothing is cut off: remove the line or evaluate a model with more positions"
        )
    if max(tokens) >= vocabulary_size:
        raise UserError(
            f"{place} has token {max(tokens)}, but the model knows {vocabulary_size} tokens; "
            "put the tokenizer that the model was trained with into its directory"
        )


def _encode_2024(options: Sequence[Completion], tokenizer: "PreTrainedTokenizerBase") -> list[ScoredTokens]:
    texts = [f" {option.text}" if option.context is None else option.whole for option in options]
    whole = _encode(tokenizer, texts, add_special_tokens=False)["input_ids"]
    if options[0].context is None:
        prefix = _prefix_token(tokenizer)
        return [ScoredTokens((prefix, *tokens), 1) for tokens in whole]
    # As in lm-eval, white space at a context's end belongs to the following text.
    contexts = [(option.context or "").rstrip() for option in options]
    before = _encode(tokenizer, contexts, add_special_tokens=False)["input_ids"]
    return [ScoredTokens(tuple(tokens), len(first)) for tokens, first in zip(whole, before, strict=True)]


def _encode_2025(options: Sequence[Completion], tokenizer: "PreTrainedTokenizerBase") -> list[ScoredTokens]:
    if not tokenizer.is_fast:
        raise UserError(
            "babylm-2025 needs the places of tokens in the text, which this tokenizer does not tell; save a "
            "tokenizer.json beside the model"
        )
    texts = [option.whole for option in options]
    encoded = _encode(tokenizer, texts, add_special_tokens=True, return_offsets_mapping=True)
    return [
        _scored_2025(tokens, [end for _, end in offsets], len(option.context or ""))
        for option, tokens, offsets in zip(options, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _scored_2025(tokens: Sequence[int], ends: Sequence[int], context_length: int) -> ScoredTokens:
    """The tokens that end behind the context, except the first token, which nothing predicts.

    Special tokens end at 0, so a closing one is not scored; unscored tokens at the end need not be read.
    """
    scored = [place for place, end in enumerate(ends) if end > context_length and place > 0]
    if not scored:
        return ScoredTokens(tuple(tokens), len(tokens))
    return ScoredTokens(tuple(tokens[: scored[-1] + 1]), scored[0])


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **options: bool) -> Mapping[str, Any]:
    encoded: Mapping[str, Any] = tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)
    return encoded


def _prefix_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token before a sentence: bos, else eos, else pad."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        "the tokenizer names no bos, eos or pad token, but babylm-2024 puts one of them before each sentence; "
        "name one in tokenizer_config.json"
    )
