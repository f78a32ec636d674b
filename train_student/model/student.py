"""The ways to begin a student: its shape and its initial weights.

    architecture  a shape in a few numbers (`shapes.py`)
    model_type    any configuration that transformers builds a causal language model from (`configured.py`)
    from          trained weights, all of them or some of their blocks (`trained.py`)

Nothing here imports torch before it builds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from palenka.ground.errors import UserError, reason_of
from palenka.ground.registry import Registry
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from palenka.data.corpus import Corpus
    from palenka.data.signals.manifest import TeacherIdentity

SpecialTokens = Mapping[str, Any]
"""Ids of special tokens by their names in Hugging Face configurations."""


class StudentModel(Settings):
    """The model to train."""

    def configuration(self, vocabulary_size: int, special_tokens: SpecialTokens) -> PretrainedConfig:
        """The Hugging Face configuration over a vocabulary.

        Raises:
            UserError: if there is no such model.
        """
        raise NotImplementedError

    def summary(self) -> str:
        """A short description."""
        raise NotImplementedError

    @property
    def may_drop_out(self) -> bool:
        """Whether it may have dropout, whose masks depend on the micro-batch."""
        return True

    def configured(self, corpus: Corpus) -> PretrainedConfig:
        """The Hugging Face configuration over a corpus's vocabulary."""
        return self.configuration(corpus.vocabulary_size, special_tokens_of(corpus))

    def require_fit(self, corpus: Corpus, length: int) -> None:
        """Refuse windows longer than the model's positions, and a vocabulary that is not the corpus's."""
        from palenka.data.model_files import positions_of, require_positions

        require_positions("model", positions_of(self.configured(corpus)), length)

    def build(self, corpus: Corpus, seed: int) -> PreTrainedModel:
        """The model with float32 weights that depend only on the settings and the seed."""
        return built(self.configured(corpus), seed, self.summary())

    def origin(self) -> TeacherIdentity | None:
        """The identity of the model that it starts from; None if it starts with random weights."""
        return None

    def num_parameters(self, vocabulary_size: int) -> int:
        """Number of parameters with a vocabulary of this size; built by transformers without allocating memory."""
        import torch

        config = self.configuration(vocabulary_size, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None})
        with torch.device("meta"):
            return count_parameters(built(config, 0, self.summary()))


STUDENT_MODELS: Registry[type[StudentModel]] = Registry("way to begin a student")


def special_tokens_of(corpus: Corpus) -> SpecialTokens:
    """The special tokens of a corpus's tokenizer; a configuration's defaults belong to another vocabulary."""
    tokenizer = corpus.tokenizer()
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def built(config: PretrainedConfig, seed: int, summary: str) -> PreTrainedModel:
    """A model of a configuration with random float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel

    with torch.random.fork_rng(devices=[]), building(summary):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    assert isinstance(model, PreTrainedModel)
    return model


@contextmanager
def building(summary: str) -> Iterator[None]:
    """Turn transformers' errors about numbers that do not fit together into one sentence."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
        NotImplementedError,
        StrictDataclassError,
    ) as error:
        raise UserError(f"model: {summary} cannot be built ({reason_of(error)}); change its numbers") from error


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
