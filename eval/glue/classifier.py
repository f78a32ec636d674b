"""A causal model with a classification head, read at the last token of each text.

Shape legend: B texts, L tokens of the longest of them, D hidden size, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palenka.eval.glue.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DROPOUT = 0.1


class TokenBatch(NamedTuple):
    """Texts as tokens, padded on the right whatever the tokenizer says, so that no token follows padding.

    Attributes:
        tokens: [B, L].
        lengths: of each text, [B].
    """

    tokens: Tensor
    lengths: Tensor


class Classifier(nn.Module):
    """The bare model with the recipe's head: LayerNorm, Linear, GELU, LayerNorm, Dropout, Linear, no weights in norms.

    Args:
        model: a causal language model, used without its output embedding.
        classes: number of classes.
    """

    def __init__(self, model: PreTrainedModel, classes: int) -> None:
        super().__init__()
        self.model = model.base_model
        width = int(model.config.get_text_config().hidden_size)
        self.head = nn.Sequential(
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Dropout(_DROPOUT),
            nn.Linear(width, classes),
        )
        self.to(model.device)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Logits [B, C], from the states of the last tokens."""
        places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        mask = (places < batch.lengths[:, None]).long()
        states = self.model(input_ids=batch.tokens, attention_mask=mask, use_cache=False).last_hidden_state
        last = states[torch.arange(len(batch.lengths), device=states.device), batch.lengths - 1]
        logits: Tensor = self.head(last)
        return logits


def encode_examples(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], length: int
) -> list[tuple[int, ...]]:
    """The tokens of each pair of texts, as the tokenizer joins pairs, truncated to a length, the longer text first."""
    firsts, seconds = [example.first for example in examples], [example.second for example in examples]
    encoded = tokenizer(firsts, seconds, truncation=True, max_length=length, verbose=False)
    return [tuple(tokens) for tokens in encoded["input_ids"]]


def batch_of(texts: Sequence[tuple[int, ...]], device: torch.device) -> TokenBatch:
    """A batch of texts, padded with token 0, which is masked."""
    lengths = torch.tensor([len(text) for text in texts], device=device)
    rows = [torch.tensor(text) for text in texts]
    return TokenBatch(nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), lengths)
