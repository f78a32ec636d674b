"""A window token by token, with a teacher's most probable next tokens."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.distribution import Distribution
from palenka.data.text.tokenizer import token_bytes
from palenka.ground.console import plain_table
from palenka.ground.errors import UserError

_WIDTH = 80


@dataclass(frozen=True)
class Expected:
    """What a teacher expected after a token.

    Attributes:
        token: the text of the token.
        following: the text of the actual next token; None at the end of the window.
        probability: the teacher's probability of that token; None at the end, and if the cache does not keep it one by
            one.
        entropy: of the distribution, in nats; a lower bound if only some tokens are known one by one.
        guesses: the most probable tokens with their probabilities, the most probable first.
    """

    token: str
    following: str | None
    probability: float | None
    entropy: float
    guesses: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Look:
    """A window with a teacher's expectation at each of its tokens; prints as a table of 80 columns.

    Attributes:
        view: of the window.
        slot: its place in the cache.
        index: its number in the text.
        temperature: of the probabilities.
        text: of the window.
        tokens: the expectation after each token, in order.
    """

    view: int
    slot: int
    index: int
    temperature: float
    text: str
    tokens: tuple[Expected, ...]

    def __str__(self) -> str:
        table = plain_table("token", "next", "p", "best guesses for the next")
        for column, width in zip(table.columns, (14, 14, 5, 44), strict=True):
            column.width, column.no_wrap, column.overflow = width, True, "ellipsis"
        for each in self.tokens:
            following = "" if each.following is None else _quoted(each.following)
            probability = "" if each.probability is None else f"{each.probability:.3f}"
            guesses = "  ".join(f"{_quoted(text)} {p:.2f}" for text, p in each.guesses)
            table.add_row(_quoted(each.token), following, probability, guesses)
        page = Console(file=io.StringIO(), width=_WIDTH, markup=False, emoji=False, highlight=False, color_system=None)
        page.print(f"window {self.index:,} of view {self.view} (slot {self.slot:,}), T = {self.temperature:g}", table)
        assert isinstance(page.file, io.StringIO)
        return "\n".join(line.rstrip() for line in page.file.getvalue().splitlines())


def look(
    cache: TeacherCache, corpus: Corpus, slot: int = 0, view: int = 0, guesses: int = 3, temperature: float = 1.0
) -> Look:
    """Decode a window of a cache: its tokens beside the teacher's best guesses.

    Args:
        cache: of the teacher.
        corpus: of the same text; its tokenizer decodes the tokens.
        slot: the window's place in the cache; the first slots are a sample of the text, and captured first.
        view: of the window.
        guesses: number of most probable tokens per position.
        temperature: one of the cache's.

    Raises:
        UserError: if the cache belongs to another text, or lacks the window or the temperature.
    """
    manifest = cache.manifest
    manifest.require_text(f"cache {cache.directory}", corpus, manifest.windows)
    if temperature not in (known := manifest.logits.temperatures):
        raise UserError(
            f"temperature is {temperature:g}, but {cache.directory} was captured at {known}; choose of these"
        )
    if guesses < 1:
        raise UserError(f"guesses is {guesses}; ask for one at least")
    said = cache.read(view, [slot]).at(temperature)
    slots = manifest.windows.slots(len(corpus.tokens), view)
    tokens = torch.from_numpy(corpus.gather(manifest.windows, view, slots[[slot]]))
    tokenizer = corpus.tokenizer()
    spelt = [
        name.decode("utf-8", "replace") or str(tokenizer.convert_ids_to_tokens(number))
        for number, name in enumerate(token_bytes(tokenizer, corpus.vocabulary_size))
    ]
    best, log_best, log_following = _best(said, tokens, guesses, corpus.vocabulary_size)
    following = tokens[0, 1:].tolist()
    expected = [
        Expected(
            spelt[token],
            spelt[following[place]] if place < len(following) else None,
            math.exp(log_following[place]) if place < len(following) and not math.isnan(log_following[place]) else None,
            entropy,
            tuple((spelt[guess], math.exp(log)) for guess, log in zip(ids, logs, strict=True)),
        )
        for place, (token, entropy, ids, logs) in enumerate(
            zip(tokens[0].tolist(), said.entropy()[0].tolist(), best, log_best, strict=True)
        )
    ]
    text = tokenizer.decode(tokens[0].tolist())
    return Look(view, slot, int(slots[slot]), temperature, str(text), tuple(expected))


def _best(
    said: Distribution, tokens: Tensor, count: int, vocabulary_size: int
) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[float]], Sequence[float]]:
    """The most probable tokens of a window, their log-probabilities, and those of the tokens that follow.

    Args:
        said: the distributions [1, L].
        tokens: [1, L].
        count: of the most probable tokens.
        vocabulary_size: V.
    """
    following = tokens[0, 1:, None]  # [L - 1, 1]: the token after each token but the last
    if said.ids is None or said.others is not None:
        each = said.log_probabilities(vocabulary_size)[0]
        ids = torch.arange(each.shape[-1]).expand_as(each)
        log_following = each[:-1].gather(-1, following)[:, 0]
    else:
        each, ids = said.log_kept[0], said.ids[0]
        is_it = ids[:-1] == following
        # NaN where the token is not among those that are kept.
        log_following = torch.where(is_it.any(-1), torch.where(is_it, each[:-1], -math.inf).amax(-1), math.nan)
    top = each.topk(min(count, each.shape[-1]))
    return ids.gather(-1, top.indices).tolist(), top.values.tolist(), log_following.tolist()


def _quoted(text: str) -> str:
    """A token between quotes, so that its spaces show, with line breaks written out."""
    return json.dumps(text, ensure_ascii=False)
