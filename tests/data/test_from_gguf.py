"""GGUF files as directories of models: weights as they were, ids as those of the tokenizer that was written."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from palenka.data.from_gguf import ConvertSettings, convert
from palenka.ground.errors import UserError

gguf = pytest.importorskip("gguf", reason="GGUF files are read with the gguf package")

TEXT = "The cat's 12,345 mice ran on 2026-11-26; naïve café 字字 <s>\n\n  two  spaces\n" * 5
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=48,
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    tie_word_embeddings=True,
)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}
"""llama.cpp's names of the weights."""


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(CONFIG).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


@pytest.fixture
def write(model: Any, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Writes the model as llama.cpp does."""

    def file(kind: str = "F32", before: str = "smollm") -> Path:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(48)
        writer.add_embedding_length(64)
        writer.add_block_count(2)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_rope_freq_base(5000.0)
        writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
        writer.add_vocab_size(320)
        said = json.loads(tokenizer.to_str())["model"]
        tokens = sorted(said["vocab"], key=said["vocab"].get)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(before)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in said["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, value in model.state_dict().items():
            if name == "lm_head.weight":  # the embeddings once more
                continue
            for theirs, ours in NAMES.items():
                name = name.replace(theirs, ours)
            weights = value.numpy()
            if heads := {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2]):  # rotary halves side by side
                weights = weights.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(weights.shape)
            quantized = gguf.GGMLQuantizationType[kind] if weights.ndim > 1 else gguf.GGMLQuantizationType.F32
            stored = gguf.quants.quantize(np.ascontiguousarray(weights), quantized)
            writer.add_tensor(name, stored, raw_dtype=quantized)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return file


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-5), ("Q8_0", 0.02), ("Q4_1", 0.2)])
def test_a_converted_model_computes_what_the_model_did(
    kind: str, tolerance: float, write: Callable[..., Path], model: Any, tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    convert(ConvertSettings(gguf=write(kind), output=tmp_path / "out"))
    assert torch.equal(torch.random.get_rng_state(), before)
    converted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert converted.dtype == torch.float32
    assert not hasattr(converted.config, "quantization_config")
    tokens = torch.arange(48).unsqueeze(0) * 5
    with torch.no_grad():
        expected, found = model(tokens).logits, converted(tokens).logits
    assert (found - expected).norm() < tolerance * expected.norm()
    assert converted.config.max_position_embeddings == 48


def test_the_tokenizer_in_a_file_gives_the_ids_of_the_one_that_was_written(
    write: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    convert(ConvertSettings(gguf=write(), output=tmp_path / "out"))
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = TEXT + "<|im_start|>user 2025<|im_end|>"
    assert found(text).input_ids == tokenizer.encode(text).ids
    assert found.decode(found(text).input_ids) == text
    assert (found.bos_token, found.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert len(found("12345").input_ids) == 5


def test_a_tokenizer_of_an_unknown_kind_is_to_be_given(write: Callable[..., Path], tmp_path: Path) -> None:
    convert(ConvertSettings(gguf=write(), output=tmp_path / "out"))
    file = write(before="llama-bpe")
    with pytest.raises(UserError, match=r"a tokenizer of the kind gpt2/llama-bpe, .* gpt2/smollm; give the tokenizer"):
        convert(ConvertSettings(gguf=file, output=tmp_path / "other"))
    convert(ConvertSettings(gguf=file, output=tmp_path / "other", tokenizer=tmp_path / "out"))
    first, other = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "other"))
    assert first(TEXT).input_ids == other(TEXT).input_ids


def test_the_file_of_an_installed_package(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "ships_a_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write().rename(package / "some.gguf")
    monkeypatch.syspath_prepend(package.parent)
    convert(ConvertSettings(gguf=Path("ships-a-model"), output=tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_cannot_be_converted_is_a_sentence(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"gone\.gguf is no GGUF file, and no installed package that ships one; give"):
        convert(ConvertSettings(gguf=Path("gone.gguf"), output=tmp_path / "out"))
    file = write()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"model\.gguf cannot be read as GGUF \(.*\); fetch it again"):
        convert(ConvertSettings(gguf=file, output=tmp_path / "out"))
    file = write()
    with pytest.raises(UserError, match=f"output {tmp_path} exists; delete it or choose another output"):
        convert(ConvertSettings(gguf=file, output=tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"read with the gguf package; pip install 'palenka\[gguf\]'"):
        convert(ConvertSettings(gguf=file, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
