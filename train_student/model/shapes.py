"""Model shapes: from a few numbers in YAML to a configuration of Llama, GPT-2 or GPT-J."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from palenka.train_student.model.student import STUDENT_MODELS, SpecialTokens, StudentModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@STUDENT_MODELS.register("architecture")
class ModelShape(StudentModel):
    """A shape in a few numbers; the names are those of Hugging Face configurations."""

    architecture: Literal["llama", "gpt2", "gptj"]
    """Family, built by transformers' own classes."""
    hidden_size: int = Field(ge=1, le=2**16)
    """Width."""
    num_hidden_layers: int = Field(ge=1, le=1000)
    """Transformer blocks."""
    num_attention_heads: int = Field(ge=1, le=2**16)
    """Attention heads in a block."""
    intermediate_size: int | None = Field(default=None, ge=1, le=2**18)
    """Width of the feed-forward layer; default: 4 × hidden_size."""
    max_position_embeddings: int = Field(default=256, ge=2, le=2**20)
    """Longest sequence that the model takes."""
    tie_word_embeddings: bool = True
    """Whether input and output embeddings are one matrix."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of embeddings, attention and residuals (GPT-2 and GPT-J; in Llama only of attention)."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.architecture != "gpt2" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"{self.architecture} needs an even hidden_size / num_attention_heads, "
                f"not {self.hidden_size // self.num_attention_heads}"
            )
        return self

    def configuration(self, vocabulary_size: int, special_tokens: SpecialTokens) -> PretrainedConfig:
        """See `StudentModel`."""
        from transformers import GPT2Config, GPTJConfig, LlamaConfig

        shared = {"vocab_size": vocabulary_size, "tie_word_embeddings": self.tie_word_embeddings, **special_tokens}
        feed_forward = self.intermediate_size or 4 * self.hidden_size
        if self.architecture == "llama":
            return LlamaConfig(
                hidden_size=self.hidden_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                intermediate_size=feed_forward,
                max_position_embeddings=self.max_position_embeddings,
                attention_dropout=self.dropout,
                **shared,
            )
        # GPT-2 and GPT-J use older names; intermediate_size would be silently ignored.
        older_names: dict[str, Any] = {
            "n_embd": self.hidden_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_inner": feed_forward,
            "n_positions": self.max_position_embeddings,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "resid_pdrop": self.dropout,
        }
        if self.architecture == "gpt2":
            return GPT2Config(**older_names, **shared)
        head_size = self.hidden_size // self.num_attention_heads
        return GPTJConfig(rotary_dim=min(64, head_size), **older_names, **shared)

    def summary(self) -> str:
        """See `StudentModel`."""
        return self.architecture

    @property
    def may_drop_out(self) -> bool:
        """See `StudentModel`."""
        return self.dropout > 0
