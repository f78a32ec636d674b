"""Students of any kind: from a configuration, from trained weights, from some of their blocks; heads of any kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of
from palenka.data.signals.stream import Batch
from palenka.ground.command_line import parse
from palenka.ground.errors import UserError
from palenka.ground.settings import read_yaml
from palenka.train_student.model.probe import has_linear_head, require_causal
from palenka.train_student.objective.objective import Objective
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

SettingsOfRun = Callable[..., TrainSettings]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL |= {"intermediate_size": 32, "max_position_embeddings": 32}
# Of each of these the logits are more than a linear map of the last states: capped, divided, multiplied.
OWN_HEADS = {
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
}
LINEAR_HEADS = {"llama": {}, "qwen3": {"head_dim": 8}, "gemma3_text": {"head_dim": 8}, "phi": {}, "olmo2": {}}


def of_type(model_type: str) -> dict[str, object]:
    return {"model_type": model_type, **SMALL, **(OWN_HEADS | LINEAR_HEADS)[model_type]}


def sharp(model: Any) -> Any:
    """A model whose logits are large enough for a cap to bite."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40.0)
    return model


def dense(logits: Tensor, tokens: Tensor, teacher: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and T² · KL over a teacher's k most probable tokens and one bucket for the others."""
    hard = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    t, q = (teacher / temperature).softmax(-1), (logits / temperature).softmax(-1)
    kept = torch.zeros_like(t).scatter(-1, teacher.topk(k, dim=-1).indices, 1.0)
    t_tail, q_tail = ((1 - kept) * t).sum(-1), ((1 - kept) * q).sum(-1)
    kl = (kept * t * (t.log() - q.log())).sum(-1) + t_tail * (t_tail.log() - q_tail.log())
    return hard, temperature**2 * kl.mean()


@pytest.mark.parametrize("model_type", [*OWN_HEADS, "qwen3"])
def test_value_and_gradient_are_those_of_dense_autograd_in_float64(
    model_type: str, settings_of_run: SettingsOfRun, signal_of: Callable[..., Any], corpus: Corpus
) -> None:
    student = sharp(settings_of_run(model=of_type(model_type)).model.build(corpus, seed=3)).double()
    teachers = {"a": {"source": "live", "model": "none"}}
    settings = settings_of_run(teachers=teachers, objective={"hard": 0.4, "logit": 0.6, "temperature": 2.0}).objective
    objective = Objective(student, settings, {}, seed=0)
    assert objective.has_linear_head is (model_type not in OWN_HEADS)
    tokens = torch.from_numpy(corpus.tokens[:64].astype("int64")).view(4, 16)
    spoken = 3 * torch.randn(4, 16, corpus.vocabulary_size, generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, tokens[:, :0], {"a": signal_of(spoken, k=8)})
    loss, terms = objective(batch, {"hard": 0.4, "logit/a": 0.6})
    hard, logit = dense(student(input_ids=tokens).logits, tokens, spoken.double(), k=8, temperature=2.0)
    # The teacher's signal and the tokens' shares are in float32.
    assert terms["hard"].item() == pytest.approx(hard.item(), rel=1e-7)
    assert terms["logit/a"].item() == pytest.approx(logit.item(), rel=1e-6)
    parameters = list(student.parameters())
    found = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(0.4 * hard + 0.6 * logit, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("model_type", OWN_HEADS)
def test_with_a_linear_head_instead_the_numbers_would_be_others(
    model_type: str, settings_of_run: SettingsOfRun, corpus: Corpus
) -> None:
    student = sharp(settings_of_run(model=of_type(model_type)).model.build(corpus, seed=3))
    objective = Objective(student, ObjectiveSettings(), {}, seed=0)
    tokens = torch.from_numpy(corpus.tokens[:64].astype("int64")).view(4, 16)
    right = objective(Batch(tokens, tokens[:, :0], {}), {"hard": 1.0})[0].item()
    objective.has_linear_head = True
    assert abs(objective(Batch(tokens, tokens[:, :0], {}), {"hard": 1.0})[0].item() - right) > 1e-2 * right


@pytest.mark.parametrize("model_type", [*OWN_HEADS, *LINEAR_HEADS])
def test_a_head_is_told_by_what_it_computes_even_where_its_logits_are_small(
    model_type: str, settings_of_run: SettingsOfRun, corpus: Corpus
) -> None:
    student = settings_of_run(model=of_type(model_type)).model.build(corpus, seed=0)
    state = torch.random.get_rng_state()
    assert has_linear_head(student) is (model_type in LINEAR_HEADS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student.training
    require_causal(student, model_type)


def test_training_any_of_them_says_which_head_it_has(
    settings_of_run: SettingsOfRun,
    capture_settings: CaptureSettings,
    tmp_path: Path,
    capsys: Any,
    changed: Callable[..., CaptureSettings],
) -> None:
    hidden = changed(capture_settings, hidden={"positions": 5})
    capture(hidden)
    for model_type in ("gemma2", "qwen3"):
        settings = settings_of_run(
            output=tmp_path / model_type,
            model=of_type(model_type),
            fraction=0.05,
            teachers={"t": {"cache": hidden.output}},
            objective={"hard": 0.5, "logit": 0.5, "hidden": 0.1, "auxiliary": 0.1},
            validation={"windows": 8},
        )
        capsys.readouterr()
        result = train(settings)
        assert ("its logits are no linear map" in capsys.readouterr().err) is (model_type == "gemma2")
        model = AutoModelForCausalLM.from_pretrained(settings.output)
        assert model.config.model_type == model_type
        assert result.parameters == model.num_parameters()
        assert read_yaml(settings.output / "config.yaml")["model"] == of_type(model_type)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "qwen9"}, r"model_type is 'qwen9', but transformers builds no .* did you mean 'qwen3"),
        ({"hiden_size": 3}, r"model.hiden_size is no field of qwen3's configuration; did you mean 'hidden_size'\?"),
        ({"vocab_size": 9}, r"model.vocab_size follows from the corpus's tokenizer; leave it out"),
        ({"num_key_value_heads": 3}, r"model: qwen3 cannot be built \(.*\); change its numbers"),
        ({"num_hidden_layers": "many"}, r"model: qwen3 cannot be built \(.*\); change its numbers"),
        ({"model_type": "bert"}, r"model: bert sees the tokens that it is to predict; set is_decoder: true"),
        ({"max_position_embeddings": 8}, r"windows have 16 tokens, but model has 8 positions"),
    ],
)
def test_a_configuration_that_makes_no_student_is_a_sentence(
    changes: dict[str, object], sentence: str, settings_of_run: SettingsOfRun, tmp_path: Path
) -> None:
    bert = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
    model = (bert if changes.get("model_type") == "bert" else of_type("qwen3")) | changes
    with pytest.raises(UserError, match=sentence):
        train(settings_of_run(output=tmp_path / "run", model=model, fraction=0.05, validation={"windows": 4}))


def test_the_three_ways_exclude_each_other_and_reach_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "student.yaml"
    file.write_text("corpus: corpus\noutput: run\nmodel: {from: teacher, layers: [0, 2]}\n")

    def parsed(*arguments: str) -> TrainSettings:
        return parse(TrainSettings, ["--config", str(file), *arguments], "palenka train")

    assert parsed().model.as_plain() == {"from": "teacher", "layers": [0, 2]}
    assert parsed("--model.layers", "1", "3").model.as_plain()["layers"] == [1, 3]
    with pytest.raises(UserError, match="model: architecture and from exclude each other; give one"):
        parsed("--model.architecture", "llama")
    with pytest.raises(UserError, match=r"layers is \[2, 0\], but it should name blocks in ascending order"):
        parsed("--model.layers", "[2, 0]")
    file.write_text("corpus: corpus\noutput: run\nmodel: {model_type: qwen3, hidden_size: 16}\n")
    model = parsed("--model.rope_parameters.rope_theta", "100", "--model.tie_word_embeddings", "false").model
    assert model.as_plain() == {
        "model_type": "qwen3",
        "hidden_size": 16,
        "rope_parameters": {"rope_theta": 100},
        "tie_word_embeddings": False,
    }
    file.write_text("corpus: corpus\noutput: run\nmodel: {architecture: llama, hiden_size: 16}\n")
    with pytest.raises(UserError, match=r"model.hiden_size is not an option; did you mean 'model.hidden_size'\?"):
        parsed()


def test_a_student_goes_on_from_trained_weights(
    settings_of_run: SettingsOfRun, teacher: Path, corpus: Corpus, tmp_path: Path
) -> None:
    still = {"optimizer": {"learning_rate": 1e-30, "weight_decay": 0}, "fraction": 0.05, "validation": {"windows": 8}}
    settings = settings_of_run(output=tmp_path / "run", model={"from": teacher}, **still)
    train(settings)
    tokens = torch.arange(16).unsqueeze(0)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each)(tokens).logits for each in (settings.output, teacher))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-20)
    run = Run(settings.output).read()
    assert run is not None
    assert run.inputs.origin is not None
    assert run.inputs.origin == identity_of(teacher, "float32")
    assert settings.model.build(corpus, seed=0).config.num_hidden_layers == 2
    # What it went on from belongs to the run.
    other = settings_of_run(output=tmp_path / "run", model={"from": copy_of(teacher, tmp_path / "other")}, **still)
    with pytest.raises(UserError, match=r"config.yaml|model.from is"):
        train(other)


def copy_of(model: Path, place: Path) -> Path:
    shutil.copytree(model, place)
    return place


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("tied", [True, False])
def test_some_blocks_are_kept_and_nothing_else_changes(
    architecture: str, tied: bool, make_teacher: Callable[..., Path], settings_of_run: SettingsOfRun, corpus: Corpus
) -> None:
    source = make_teacher(architecture, seed=4, num_hidden_layers=4, tie_word_embeddings=tied)
    whole: Any = AutoModelForCausalLM.from_pretrained(source)

    def student(*layers: int) -> Any:
        state = torch.random.get_rng_state()
        built = settings_of_run(model={"from": source, "layers": layers}).model.build(corpus, seed=0)
        assert torch.equal(torch.random.get_rng_state(), state)
        return built.eval()

    tokens = torch.arange(16).unsqueeze(0)
    assert torch.equal(student(0, 1, 2, 3)(tokens).logits, whole(tokens).logits)
    shallow = student(1, 3)
    assert shallow.config.num_hidden_layers == 2
    assert [
        block.attn.layer_idx if hasattr(block, "attn") else block.self_attn.layer_idx for block in blocks(shallow)
    ] == [0, 1]
    # By hand: the same model with the other blocks taken out of its list.
    for number in (2, 0):
        del blocks(whole)[number]
    whole.config.num_hidden_layers = 2
    torch.testing.assert_close(shallow(tokens).logits, whole(tokens, use_cache=False).logits, rtol=0, atol=0)


def blocks(model: Any) -> Any:
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def test_blocks_that_are_not_there_are_refused(settings_of_run: SettingsOfRun, teacher: Path, tmp_path: Path) -> None:
    settings = settings_of_run(output=tmp_path / "run", model={"from": teacher, "layers": [0, 2]})
    with pytest.raises(
        UserError, match=rf"model.layers is \[0, 2\], but {teacher} has the blocks 0 to 1; choose among"
    ):
        train(settings)


def test_lists_by_block_follow_the_blocks(settings_of_run: SettingsOfRun, corpus: Corpus, tmp_path: Path) -> None:
    model = of_type("gemma2") | {"num_hidden_layers": 4, "sliding_window": 4}
    settings_of_run(model=model).model.build(corpus, seed=0).save_pretrained(tmp_path / "gemma")
    kinds = AutoConfig.from_pretrained(tmp_path / "gemma").layer_types
    shallow = settings_of_run(model={"from": tmp_path / "gemma", "layers": [0, 2, 3]}).model.configured(corpus)
    assert shallow.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert len(set(kinds)) == 2


def test_padding_is_left_out_of_a_student_that_goes_on(
    make_teacher: Callable[..., Path], settings_of_run: SettingsOfRun, corpus: Corpus, tmp_path: Path, capsys: Any
) -> None:
    source = copy_of(make_teacher("llama", seed=3), tmp_path / "padded")
    padded: Any = AutoModelForCausalLM.from_pretrained(source)
    padded.resize_token_embeddings(corpus.vocabulary_size + 64)
    padded.save_pretrained(source)
    student: Any = settings_of_run(model={"from": source}).model.build(corpus, seed=0)
    assert (
        f"64 of its {corpus.vocabulary_size + 64} logits stand for no token and are left out" in capsys.readouterr().err
    )
    tokens = torch.arange(16).unsqueeze(0)
    assert student.config.vocab_size == corpus.vocabulary_size
    torch.testing.assert_close(student(tokens).logits, padded(tokens).logits[..., : corpus.vocabulary_size])


def test_a_student_of_another_tokenizer_is_refused(
    settings_of_run: SettingsOfRun, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    source = copy_of(make_teacher("llama", seed=3), tmp_path / "other")
    tokenizer = source / "tokenizer.json"
    # Two tokens change places: the same size, another mapping.
    changed = tokenizer.read_text().replace('"!": 3', '"!": 4').replace('"\\"": 4', '"\\"": 3')
    assert changed != tokenizer.read_text()
    tokenizer.write_text(changed)
    with pytest.raises(UserError, match=rf"student {source} has another tokenizer .* than corpus .*prepare text with"):
        train(settings_of_run(output=tmp_path / "run", model={"from": source}))
