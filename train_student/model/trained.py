"""A student that starts from trained weights: all of a model, or some of its blocks.

A shallow student with every third block of its teacher starts better than with random weights (DistilBERT, arXiv
1910.01108).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from palenka.ground.errors import UserError
from palenka.ground.progress import info
from palenka.train_student.model.student import STUDENT_MODELS, SpecialTokens, StudentModel, building

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from palenka.data.corpus import Corpus
    from palenka.data.hub import Located
    from palenka.data.signals.manifest import TeacherIdentity


@STUDENT_MODELS.register("from")
class TrainedModel(StudentModel):
    """Trained weights to start from, of a model with the corpus's tokenizer."""

    from_: Path = Field(alias="from")
    """Directory of the model, or its id on the Hugging Face Hub."""
    layers: tuple[int, ...] | None = None
    """Blocks to keep, counted from 0, such as [0, 3, 6]; default: all."""

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        if self.layers is not None and (not self.layers or list(self.layers) != sorted({*self.layers})):
            raise ValueError(
                f"layers is {list(self.layers)}, but it should name blocks in ascending order, as [0, 3, 6]"
            )
        return self

    def as_plain(self) -> dict[str, object]:
        """See `Settings`."""
        return self.model_dump(mode="json", by_alias=True)

    def configuration(self, vocabulary_size: int, special_tokens: SpecialTokens) -> PretrainedConfig:
        """See `StudentModel`; special tokens are those of the model."""
        from palenka.data.model_files import config_of

        config = config_of(self._located.directory)
        if self.layers is not None:
            config = self._with_blocks(config, self.layers)
        config.get_text_config().vocab_size = vocabulary_size
        return config

    def require_fit(self, corpus: Corpus, length: int) -> None:
        """See `StudentModel`."""
        from palenka.data.model_files import require_fit

        require_fit("student", self._located, corpus, length)
        self.configured(corpus)

    def build(self, corpus: Corpus, seed: int) -> PreTrainedModel:
        """See `StudentModel`; logits that stand for no token of the corpus are dropped."""
        import torch

        from palenka.data.model_files import load_model

        model = load_model(self._located.directory, torch.device("cpu"))
        num_logits = model.config.get_text_config().vocab_size
        if num_logits > corpus.vocabulary_size:
            padding = num_logits - corpus.vocabulary_size
            info(f"{self.summary()}: {padding} of its {num_logits} logits stand for no token and are left out")
            model.resize_token_embeddings(corpus.vocabulary_size)
        return model if self.layers is None else self._with_blocks_of(model, self.layers)

    def origin(self) -> TeacherIdentity:
        """See `StudentModel`."""
        from palenka.data.model_files import identity_of

        return identity_of(self._located.directory, "float32", self._located.source)

    def summary(self) -> str:
        """See `StudentModel`."""
        kept = "" if self.layers is None else f", its blocks {', '.join(map(str, self.layers))}"
        return f"from {self.from_}{kept}"

    @cached_property
    def _located(self) -> Located:
        from palenka.data.hub import locate_model

        return locate_model(self.from_)

    def _with_blocks(self, config: PretrainedConfig, layers: tuple[int, ...]) -> PretrainedConfig:
        """The configuration of a model with only these blocks; lists with an entry per block are reduced to these.

        Raises:
            UserError: for a block that the model lacks.
        """
        plain = config.to_dict()
        text_config = config.get_text_config()
        text: dict[str, Any] = plain if text_config is config else plain["text_config"]
        depth = text_config.num_hidden_layers
        if layers[0] < 0 or layers[-1] >= depth:
            raise UserError(
                f"model.layers is {list(layers)}, but {self.from_} has the blocks 0 to {depth - 1}; choose among them"
            )
        for name, value in text.items():
            if isinstance(value, list) and len(value) == depth and not name.endswith("token_id"):
                text[name] = [value[layer] for layer in layers]
        text[text_config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
        with building(self.summary()):
            return type(config).from_dict(plain)

    def _with_blocks_of(self, model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
        """A model with some of the blocks of another model, and all its other weights."""
        import torch

        from palenka.data.blocks import block_lists

        depth = model.config.get_text_config().num_hidden_layers
        lists = block_lists(model, depth)
        weights = {}
        for name, value in model.state_dict().items():
            inside = next((each for each in lists if name.startswith(f"{each}.")), None)
            if inside is not None:
                number, rest = name.removeprefix(f"{inside}.").split(".", 1)
                if int(number) not in layers:
                    continue
                name = f"{inside}.{layers.index(int(number))}.{rest}"
            weights[name] = value
        with torch.random.fork_rng(devices=[]), building(self.summary()):
            shallow = type(model)(self._with_blocks(model.config, layers))
            shallow.load_state_dict(weights)
        shallow.generation_config = model.generation_config
        return shallow
