"""Protocols and scores against a float64 loop over single sentences, written from the protocols' description."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from palenka.data.model_files import load_model
from palenka.eval import scoring
from palenka.eval.choices import Choice, Completion
from palenka.eval.pair_suite import read_pairs
from palenka.eval.protocols import Protocol, ScoredTokens, encode_choices
from palenka.eval.scoring import log_likelihoods, reads_trees
from palenka.ground.errors import UserError

POSITIONS, VOCABULARY = 32, 320
NOUNS, VERBS = ("teacher", "river", "stone", "garden"), ("sees", "keeps", "reads")


def sentences() -> list[tuple[str, str]]:
    """Pairs that share beginnings with each other and with their neighbours, some of them equal."""
    pairs = [(f"the {noun} {verb} the {noun} .", f"the {noun} {verb} {noun} the .") for noun in NOUNS for verb in VERBS]
    pairs += [("the river", "the river sees"), ("river", "rivers"), (pairs[0][0], pairs[0][1]), ("a", "a")]
    pairs += [("Ünïcode «x»\nB: yes.", "the garden\tkeeps  the stone ."), ("the <s> river", "</s>")]
    return pairs


def as_pairs(texts: Sequence[tuple[str, str]], context: str | None = None) -> list[Choice]:
    space = "" if context is None else " "
    options = [tuple(Completion(context, space + text) for text in pair) for pair in texts]
    return [Choice(Path("f.jsonl"), n + 1, "f", n, pair) for n, pair in enumerate(options)]


def in_float64(directory: Path, tokens: Sequence[int], scored: Sequence[int]) -> float:
    """Σ log p of the tokens at some places, from one forward pass over the whole sequence."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    with torch.inference_mode():
        log_probabilities = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    return math.fsum(log_probabilities[place - 1, tokens[place]].item() for place in scored)


def reference(directory: Path, protocol: Protocol, text: str, context: str | None = None) -> float:
    """A text's score as the protocol's description has it."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if protocol == "babylm-2024" and context is None:
        tokens = [tokenizer.bos_token_id, *tokenizer.encode(f" {text}", add_special_tokens=False)]
        return in_float64(directory, tokens, range(1, len(tokens)))
    if protocol == "babylm-2024":
        before = tokenizer.encode(context, add_special_tokens=False)
        whole = tokenizer.encode(f"{context} {text}", add_special_tokens=False)
        return in_float64(directory, whole, range(len(before), len(whole)))
    joined = text if context is None else f"{context} {text}"
    encoded = tokenizer(joined, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    scored = [place for place in range(1, len(ends)) if ends[place] > len(context or "")]
    return in_float64(directory, encoded["input_ids"], scored)


def ours(directory: Path, pairs: Sequence[Choice], protocol: Protocol, shared: bool) -> np.ndarray[Any, Any]:
    model = load_model(directory, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    sequences = encode_choices(pairs, protocol, tokenizer, VOCABULARY, None)
    assert reads_trees(model, sequences)
    return log_likelihoods(model, sequences, shared)


@pytest.mark.parametrize("protocol", ["babylm-2024", "babylm-2025"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gptj"])
@pytest.mark.parametrize("shared", [True, False])
def test_scores_are_those_of_a_float64_loop(
    protocol: Protocol, architecture: str, shared: bool, make_teacher: Callable[..., Path]
) -> None:
    directory = make_teacher(architecture, max_position_embeddings=64)
    texts = [pair for pair in sentences() if protocol == "babylm-2024" or min(map(len, pair)) > 5]
    values = ours(directory, as_pairs(texts), protocol, shared)
    expected = [reference(directory, protocol, text) for pair in texts for text in pair]
    assert np.abs(values - expected).max() < 2e-5
    assert np.abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("protocol", ["babylm-2024", "babylm-2025"])
@pytest.mark.parametrize("context", ["the teacher keeps the stone .", "the river sees ", "a"])
def test_after_a_context_only_the_target_is_scored(protocol: Protocol, context: str, teacher: Path) -> None:
    texts = [("the teacher has it .", "the river has it ."), ("it", "is")]
    values = ours(teacher, as_pairs(texts, context), protocol, shared=True)
    before = context.rstrip() if protocol == "babylm-2024" else context
    expected = [
        reference(teacher, protocol, context.removeprefix(before) + text, before) for pair in texts for text in pair
    ]
    if protocol == "babylm-2024" and before != context:
        # White space at the context's end counts as the target's: "sees" + "  the".
        expected = [whole_minus_context(teacher, context, text) for pair in texts for text in pair]
    np.testing.assert_allclose(values, expected, rtol=0, atol=2e-5)


def whole_minus_context(directory: Path, context: str, text: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    whole = tokenizer.encode(f"{context} {text}", add_special_tokens=False)
    before = tokenizer.encode(context.rstrip(), add_special_tokens=False)
    return in_float64(directory, whole, range(len(before), len(whole)))


def with_tokenizer(teacher: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(teacher, to)
    path = to / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return to


def test_the_prefix_is_the_first_special_token_there_is(teacher: Path, tmp_path: Path) -> None:
    pairs = as_pairs([("the river", "the stone")])
    for name, changes in (
        ("<s>", {}),
        ("</s>", {"bos_token": None}),
        ("<pad>", {"bos_token": None, "eos_token": None}),
    ):
        tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(teacher, tmp_path / str(len(changes)), **changes))
        (tokens, start), _ = encode_choices(pairs, "babylm-2024", tokenizer, VOCABULARY, None)
        assert (tokenizer.convert_ids_to_tokens(tokens[0]), start) == (name, 1)
    none = {"bos_token": None, "eos_token": None, "pad_token": None}
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(teacher, tmp_path / "none", **none))
    with pytest.raises(UserError, match="names no bos, eos or pad token"):
        encode_choices(pairs, "babylm-2024", tokenizer, VOCABULARY, None)


def test_special_tokens_are_the_tokenizers_own_affair_in_2025_and_a_closing_one_is_not_scored(teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    plain = tokenizer.encode("the river", add_special_tokens=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    pairs, contexts = as_pairs([("the river", "the stone")]), as_pairs([("it", "is")], "the river")
    assert encode_choices(pairs, "babylm-2025", tokenizer, VOCABULARY, None)[0] == ((1, *plain), 1)
    assert encode_choices(contexts, "babylm-2025", tokenizer, VOCABULARY, None)[0].start == 1 + len(plain)
    assert encode_choices(pairs, "babylm-2024", tokenizer, VOCABULARY, None)[0].tokens == (1, *plain)


def test_what_does_not_fit_the_model_is_named_by_file_and_line(teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts = as_pairs([("the river", "a river"), ("the river sees", "it sees")])
    longest = max(len(tokenizer.encode(f" {text}", add_special_tokens=False)) for text in ("the river sees", "it sees"))
    # The prefix is read, the last token is not: as many positions as the sentence has tokens are enough.
    encode_choices(texts, "babylm-2024", tokenizer, VOCABULARY, longest)
    with pytest.raises(UserError, match=rf"f\.jsonl:2 has {longest} tokens .* model has {longest - 1} positions"):
        encode_choices(texts, "babylm-2024", tokenizer, VOCABULARY, longest - 1)
    with pytest.raises(UserError, match=r"f\.jsonl:1 has token \d+, but the model knows 100 tokens"):
        encode_choices(texts, "babylm-2024", tokenizer, 100, None)
    with pytest.raises(UserError, match=r"f\.jsonl:1: 'the' gives no token that babylm-2025 scores"):
        encode_choices(as_pairs([("the", "the river")]), "babylm-2025", tokenizer, VOCABULARY, None)


TOKENS = st.lists(st.integers(0, 6), min_size=2, max_size=12)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(TOKENS, st.integers(1, 12)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_order_and_company_change_no_score(
    teacher: Path, drawn: list[tuple[list[int], int]], random: Any, shared: bool
) -> None:
    model = load_model(teacher, torch.device("cpu"))
    sequences = [ScoredTokens(tuple(tokens), min(start, len(tokens) - 1)) for tokens, start in drawn]
    values = log_likelihoods(model, sequences, shared)
    shuffled = random.sample(range(len(sequences)), len(sequences))
    again = log_likelihoods(model, [sequences[place] for place in shuffled], shared)
    np.testing.assert_array_equal(again, values[shuffled])
    alone = [log_likelihoods(model, [sequence], False)[0] for sequence in sequences]
    np.testing.assert_allclose(values, alone, rtol=0, atol=2e-5)
    by_sequence: dict[ScoredTokens, float] = {}
    for sequence, value in zip(sequences, values, strict=True):
        assert by_sequence.setdefault(sequence, value) == value  # equal texts tie


def test_a_model_that_ignores_order_ties_on_word_orders(teacher: Path) -> None:
    model: Any = load_model(teacher, torch.device("cpu"))
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_input_embeddings().weight[:] = model.get_input_embeddings().weight[7]
    one = [ScoredTokens((1, *tokens), 1) for tokens in ([5, 9, 40, 17, 300], [300, 17, 5, 40, 9], [9, 5, 40, 300, 17])]
    values = log_likelihoods(model, [*one, ScoredTokens((1, 5, 9), 1)], shared=True)
    assert values[0] == values[1] == values[2] != values[3]


SMALL: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WITH_WINDOWS = SMALL | {"num_key_value_heads": 1, "intermediate_size": 64, "sliding_window": 4}
ARCHITECTURES: dict[str, tuple[bool, dict[str, object]]] = {
    "opt": (True, SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": (True, SMALL | {"intermediate_size": 64}),
    "bloom": (False, {"hidden_size": 32, "n_layer": 2, "n_head": 2}),  # positions by ALiBi
    "mistral": (False, WITH_WINDOWS),
    "gemma2": (False, WITH_WINDOWS | {"head_dim": 16, "final_logit_softcapping": 1.0}),
    "granite": (False, SMALL | {"num_key_value_heads": 1, "intermediate_size": 64, "logits_scaling": 4.0}),
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_any_causal_model_is_scored_right_whether_it_reads_trees_or_not(name: str) -> None:
    reads, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    draw = np.random.RandomState(0)
    sequences = [ScoredTokens((1, *draw.randint(3, 9, size=draw.randint(1, 14)).tolist()), 1) for _ in range(30)]
    assert reads_trees(model, sequences) == reads
    values = log_likelihoods(model, sequences, reads)
    for (tokens, _), value in zip(sequences, values, strict=True):
        with torch.inference_mode():
            log_probabilities = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        expected = sum(log_probabilities[place - 1, tokens[place]].item() for place in range(1, len(tokens)))
        assert value == pytest.approx(expected, abs=2e-5)


def test_a_model_that_reads_no_trees_makes_few_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, options = ARCHITECTURES["gemma2"]
    config = AutoConfig.for_model("gemma2", vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    draw = np.random.RandomState(0)
    sequences = [ScoredTokens((1, *draw.randint(3, 9, size=12).tolist()), 1) for _ in range(30)]
    expected = log_likelihoods(model, sequences, shared=False)
    made: list[int] = []
    model.register_forward_hook(lambda _model, _given, output: made.append(output.logits.numel()))
    monkeypatch.setattr(scoring, "_LOGITS_PER_PASS", 50 * 40)
    assert not reads_trees(model, sequences)
    np.testing.assert_allclose(log_likelihoods(model, sequences, shared=False), expected, rtol=0, atol=2e-5)
    assert max(made) <= 50 * 40  # the sequences that are tried first among them
    assert len(made) >= 10


def test_real_pairs_at_random_are_those_of_the_float64_loop(teacher: Path) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "evaluation" / "supplement_filtered"
    if not folder.is_dir():
        pytest.skip(f"needs the evaluation data in {folder.parent}")
    short = [
        pair
        for pair in read_pairs(sorted(folder.glob("*.jsonl")), with_context=False)
        if max(len(option.text) for option in pair.options) < 40
    ]
    chosen = [short[place] for place in np.random.RandomState(0).permutation(len(short))[:20]]
    values = ours(teacher, chosen, "babylm-2024", shared=True)
    expected = [reference(teacher, "babylm-2024", text) for pair in chosen for _, text in pair.options]
    assert np.abs(values - expected).max() < 5e-5
