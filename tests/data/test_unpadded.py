"""Masks are left out where logits stay the same bit by bit, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from palenka.data.blocks import block_lists
from palenka.data.unpadded import leave_out_masks

LENGTH = 16


def model_of(model_type: str, **fields: Any) -> PreTrainedModel:
    small: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    kind: Any = CONFIG_MAPPING[model_type]
    config = kind(**small, pad_token_id=0, bos_token_id=1, eos_token_id=2, **fields)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("mistral", {"sliding_window": LENGTH, "num_key_value_heads": 1}, True),
        ("mistral", {"sliding_window": 4, "num_key_value_heads": 1}, False),
        ("gptj", {"rotary_dim": 4}, True),
        ("falcon", {}, False),
    ],
)
def test_logits_are_the_same_bits(model_type: str, fields: dict[str, object], expected: bool, tmp_path: Path) -> None:
    model = model_of(model_type, **fields)
    tokens = torch.randint(0, 50, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=tokens, use_cache=False).logits
    model.save_pretrained(tmp_path / "before")
    # GPT-J has torch's attention from transformers 5.24 on.
    expected = expected and model.config._attn_implementation == "sdpa"
    assert leave_out_masks(model, LENGTH) is expected
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before)
    model.save_pretrained(tmp_path / "after")
    told = [json.loads((tmp_path / each / "config.json").read_text()) for each in ("before", "after")]
    assert told[0] == told[1]


def test_masks_are_made_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    asked: list[object] = []
    from transformers import masking_utils

    find = masking_utils.find_packed_sequence_indices

    def count(position_ids: torch.Tensor) -> torch.Tensor | None:
        asked.append(position_ids)
        return find(position_ids)

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", count)
    tokens = torch.arange(LENGTH).unsqueeze(0)
    model(input_ids=tokens, use_cache=False)
    assert len(asked) == 1
    leave_out_masks(model, LENGTH)
    asked.clear()
    model(input_ids=tokens, use_cache=False)
    assert asked == []


@pytest.mark.parametrize(("model_type", "expected"), [("llama", ["model.layers"]), ("gpt2", ["transformer.h"])])
def test_blocks_are_found(model_type: str, expected: list[str]) -> None:
    assert block_lists(model_of(model_type), 2) == expected
