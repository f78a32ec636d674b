"""Shapes: parameters counted by hand, and models that only the seed decides."""

import math
from collections.abc import Callable

import pytest
import torch
from accelerate import init_empty_weights
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.model.student import count_parameters, special_tokens_of

PUBLISHED_VOCABULARY = 16_000
MakeShape = Callable[..., ModelShape]


def counted_by_hand(shape: ModelShape, vocabulary: int) -> int:
    """Every matrix and vector of the three architectures, written down from their papers' blocks."""
    width, depth, positions = shape.hidden_size, shape.num_hidden_layers, shape.max_position_embeddings
    inner = shape.intermediate_size or 4 * width
    embeddings = vocabulary * width * (1 if shape.tie_word_embeddings else 2)
    if shape.architecture == "llama":  # no biases; gate, up and down; RMS norms have a scale alone
        block = 4 * width**2 + 3 * width * inner + 2 * width
        return embeddings + depth * block + width
    feed_forward = 2 * width * inner + inner + width
    if shape.architecture == "gpt2":  # biases everywhere; learnt positions; two layer norms a block
        block = 4 * (width**2 + width) + feed_forward + 4 * width
        return embeddings + positions * width + depth * block + 2 * width
    # GPT-J: attention without biases, one layer norm a block, rotary positions, a bias on the output
    return embeddings + vocabulary + depth * (4 * width**2 + feed_forward + 2 * width) + 2 * width


def on_meta(shape: ModelShape, corpus: Corpus, vocabulary: int) -> PreTrainedModel:
    """The model that `build` would make over a larger vocabulary, without memory for its weights."""
    configuration = shape.configuration(vocabulary, special_tokens_of(corpus))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(configuration)
    assert isinstance(model, PreTrainedModel)
    model.tie_weights()
    return model


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({"architecture": "gpt2", "hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 8}, 26.7),
        (
            {
                "architecture": "llama",
                "hidden_size": 768,
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                "intermediate_size": 2048,
                "tie_word_embeddings": False,
            },
            38.7,
        ),
        (
            {
                "architecture": "llama",
                "hidden_size": 512,
                "num_hidden_layers": 16,
                "num_attention_heads": 8,
                "intermediate_size": 1024,
                "tie_word_embeddings": False,
            },
            58.4,
        ),
        ({"architecture": "gpt2", "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 16}, 704.9),
        ({"architecture": "gptj", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}, 97.3),
    ],
    ids=["GPT2-44M", "Llama-60M", "BabyLlama-58M", "GPT2-705M", "GPT-J-97M"],
)
def test_published_shapes_have_the_parameters_that_a_formula_counts(
    fields: dict[str, object], millions: float, corpus: Corpus
) -> None:
    shape = ModelShape.model_validate(fields)
    expected = counted_by_hand(shape, PUBLISHED_VOCABULARY)
    assert count_parameters(on_meta(shape, corpus, PUBLISHED_VOCABULARY)) == expected
    assert expected / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inner", [None, 24])
def test_each_architecture_is_built_as_told_and_runs(
    architecture: str, tied: bool, inner: int | None, corpus: Corpus, make_shape: MakeShape
) -> None:
    shape = make_shape(architecture, tie_word_embeddings=tied, intermediate_size=inner)
    model = shape.build(corpus, seed=0)
    assert count_parameters(model) == counted_by_hand(shape, corpus.vocabulary_size)
    tokens = torch.randint(corpus.vocabulary_size, (2, 9), generator=torch.Generator().manual_seed(0))
    output = model(input_ids=tokens, labels=tokens)
    assert output.logits.shape == (2, 9, corpus.vocabulary_size)
    # An untrained model knows nothing: about as surprised as by a uniform guess.
    assert output.loss.item() == pytest.approx(math.log(corpus.vocabulary_size), abs=0.2)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_special_tokens_are_those_of_the_tokenizer(architecture: str, corpus: Corpus, make_shape: MakeShape) -> None:
    model, tokenizer = make_shape(architecture).build(corpus, seed=0), corpus.tokenizer()
    for configuration in (model.config, model.generation_config):
        assert configuration is not None
        found = (configuration.bos_token_id, configuration.eos_token_id, configuration.pad_token_id)
        assert found == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert None not in found
    assert model.config.vocab_size == corpus.vocabulary_size


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_only_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(
    architecture: str, corpus: Corpus, make_shape: MakeShape
) -> None:
    before = torch.random.get_rng_state()
    models = []
    for seed in (3, 3, 4):
        torch.rand(seed)  # moves the global generator
        state = torch.random.get_rng_state()
        models.append(make_shape(architecture).build(corpus, seed))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(torch.random.get_rng_state(), before)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_dropout_is_off_unless_asked_for(architecture: str, corpus: Corpus, make_shape: MakeShape) -> None:
    tokens = torch.arange(12).unsqueeze(0)

    def differs(dropout: float) -> bool:
        model = make_shape(architecture, dropout=dropout).build(corpus, seed=0)
        model.train()
        first, second = (model(input_ids=tokens).logits for _ in range(2))
        return not torch.equal(first, second)

    assert not differs(0.0)
    assert differs(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18, "num_attention_heads": 4}, "hidden_size 18 must be a multiple of num_attention_heads 4"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "llama needs an even hidden_size / num_attention_heads, not 3"),
        ({"architecture": "gptj", "hidden_size": 5, "num_attention_heads": 1}, "gptj needs an even .*, not 5"),
        ({"architecture": "bert"}, "should be 'llama', 'gpt2' or 'gptj'"),
        ({"num_hidden_layers": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"max_position_embeddings": 1}, "greater than or equal to 2"),
        ({"layers": 3}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str, make_shape: MakeShape) -> None:
    with pytest.raises(ValidationError, match=message):
        make_shape(**changes)


def test_gpt2_takes_odd_heads(corpus: Corpus, make_shape: MakeShape) -> None:
    model = make_shape("gpt2", hidden_size=6, num_attention_heads=2).build(corpus, seed=0)
    assert model(input_ids=torch.arange(4).unsqueeze(0)).logits.isfinite().all()
