"""Training: what a run leaves behind, step by step against dense float64 references; what does not fit is refused."""

import importlib.util
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import SINGLE, CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.stream import ReadingOrder
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.data.windows import gather
from palenka.ground.errors import UserError
from palenka.ground.records import read_commit
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

Contents = Callable[[Path], dict[str, bytes]]

MakeSettings = Callable[..., TrainSettings]
LogOf = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def make_settings(student_of_text: MakeSettings, tmp_path: Path) -> MakeSettings:
    """Settings of a run of 20 steps, a third of a second; changes replace whole groups."""

    def make(name: str = "run", **changes: object) -> TrainSettings:
        fields: dict[str, object] = {
            "output": tmp_path / name,
            "fraction": 0.3,
            "micro_batch": 16,
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 3},
        }
        return student_of_text(**(fields | changes))

    return make


@pytest.fixture(scope="module")
def caches(
    settings_of_capture: Callable[..., CaptureSettings],
    make_teacher: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, CaptureSettings]:
    """The captures of two teachers of different architecture, by name; not to be damaged."""
    folder = tmp_path_factory.mktemp("caches")
    captured = {}
    for seed, architecture in enumerate(("llama", "gpt2"), start=1):
        captured[architecture] = settings_of_capture(
            teacher=make_teacher(architecture, seed=seed),
            output=folder / architecture,
            windows={"length": 16, "views": 2},
            logits={"kind": "topk", "k": 8, "values": "float32"},
        )
        capture(captured[architecture])
    return captured


def weights(settings: TrainSettings) -> dict[str, Tensor]:
    return load_file(settings.output / "model.safetensors")


def held_out(model: Any, corpus: Corpus, length: int = 16) -> float:
    """Cross-entropy of a split in float64, window by window, from the definition."""
    model = model.double().eval()
    losses = []
    for start in range(0, len(corpus.tokens) - length + 1, length):
        tokens = torch.from_numpy(corpus.tokens[start : start + length].astype(np.int64))
        with torch.inference_mode():
            log_probabilities = model(input_ids=tokens.unsqueeze(0)).logits[0].log_softmax(-1)
        losses += [-log_probabilities[place, tokens[place + 1]].item() for place in range(length - 1)]
    return math.fsum(losses) / len(losses)


def first_windows(settings: TrainSettings, corpus: Corpus, stop: int) -> Tensor:
    order = ReadingOrder(settings.windows, len(corpus.tokens), settings.seed, settings.epochs, settings.fraction)
    pieces = order.pieces(0, stop)
    return torch.cat([torch.from_numpy(gather(corpus.tokens, order.rule, view, ids)) for view, _, ids in pieces])


def test_a_run_learns_and_what_it_keeps_loads_as_any_model_and_measures_the_same(
    make_settings: MakeSettings, corpus: Corpus
) -> None:
    settings = make_settings(fraction=1.0)
    result = train(settings)
    best = result.validation_cross_entropy
    assert best < 0.5 * math.log(corpus.vocabulary_size)
    model = AutoModelForCausalLM.from_pretrained(settings.output)
    assert result.as_plain() == read_commit(settings.output, "result.json")
    assert result.parameters == model.num_parameters()
    assert result.tokens == result.steps * settings.global_batch * settings.windows.length
    assert result.steps == len(corpus.tokens) // settings.windows.length // settings.global_batch
    assert held_out(model, Corpus.open(settings.corpus, "dev")) == pytest.approx(best, abs=1e-5)
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.output)
    text = "the teacher sees the lantern ."
    assert tokenizer(text).input_ids == corpus.tokenizer()(text).input_ids
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert not list(settings.output.glob("*.partial"))


def test_the_commands_that_a_run_ends_with_work(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_settings(output=tmp_path / "a run", epochs=1, fraction=0.1))
    said = re.sub(r"\s*\n\s*", " ", capsys.readouterr().err)
    measure, export = re.search(r"next: palenka (.*), or palenka (.*)", said).groups()  # type: ignore[union-attr]
    for command in (measure, export):
        assert main(shlex.split(command)) == 0
    assert json.loads((tmp_path / "a run-held-out.json").read_text())["suites"][0]["conditions"]["length"] == 16


def test_the_best_model_is_kept_not_the_last(make_settings: MakeSettings, tmp_path: Path, log_of: LogOf) -> None:
    # The words of the held-out text are those of the train text, but their order is not: what a run learns first
    # helps there, what it learns later misleads.
    (tmp_path / "text").mkdir()
    for split, text in (("train", "the teacher sees a river .\n"), ("dev", "a sees river the . teacher\n")):
        (tmp_path / "text" / f"switchboard.{split}").write_text(text * 500)
    prepare(CorpusSettings(sources=tmp_path / "text", output=tmp_path / "corpus", vocabulary_size=300))
    settings = make_settings(corpus=tmp_path / "corpus", fraction=1.0, epochs=8, validation={"every": 5})
    result = train(settings)
    measured = {line["step"]: line["validation_cross_entropy"] for line in log_of(settings, "validation_cross_entropy")}
    assert result.validation_cross_entropy == min(measured.values()) == measured[result.best_step]
    assert measured[result.steps] > min(measured.values()) + 0.1
    model = AutoModelForCausalLM.from_pretrained(settings.output)
    assert held_out(model, Corpus.open(settings.corpus, "dev")) == pytest.approx(min(measured.values()), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"validation": {"every": 8, "windows": 9}}, [8, 16, 20]),
        ({"fraction": 0.1, "epochs": 3}, [7, 14, 21]),  # 112 windows an epoch: 7 steps
        (
            {"fraction": 0.1, "epochs": 3, "global_batch": 24, "micro_batch": 12},
            [5, 10, 14],
        ),  # the epochs end within steps 5 and 10
    ],
)
def test_validation_comes_when_it_is_asked_for_and_at_the_end(
    make_settings: MakeSettings, changes: dict[str, object], steps: list[int], log_of: LogOf
) -> None:
    settings = make_settings(**changes)
    train(settings)
    assert [line["step"] for line in log_of(settings, "validation_cross_entropy")] == steps


def test_the_log_holds_rates_by_the_closed_form_and_a_speed(make_settings: MakeSettings, log_of: LogOf) -> None:
    settings = make_settings(log_every=3)
    train(settings)
    log = log_of(settings, "loss", speeds=True)
    assert [line["step"] for line in log] == [1, 3, 6, 9, 12, 15, 18, 20]
    log.pop(0)  # the first step, for whoever watches
    assert log[0]["learning_rate"] == pytest.approx(1e-2)
    for line in log:
        assert set(line) == {
            *("step", "epoch", "tokens", "words", "learning_rate", "loss", "hard"),
            *("tokens_per_second", "data_wait", "gradient_norm"),
        }
        assert line["tokens"] == line["step"] * settings.global_batch * settings.windows.length
        assert line["tokens_per_second"] > 0
        assert 0 <= line["data_wait"] < 1
        assert line["gradient_norm"] > 0
        # The rate that the step was made with: the peak after 3 steps, then half a cosine that is 0 after the last.
        progress = (line["step"] - 3) / 18
        assert line["learning_rate"] == pytest.approx(1e-2 * (1 + math.cos(math.pi * progress)) / 2, abs=1e-9)


def tail_bucket(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    """The divergence over a teacher's k most probable tokens and one bucket for the others, from full distributions."""
    t, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    kept = torch.zeros_like(t).scatter(-1, teacher.topk(k, dim=-1).indices, 1.0)
    t_tail, q_tail = ((1 - kept) * t).sum(-1), ((1 - kept) * q).sum(-1)
    return ((kept * t * (t.log() - q.log())).sum(-1) + t_tail * (t_tail.log() - q_tail.log())).mean()


def test_a_step_with_two_teachers_is_the_one_that_live_teachers_in_float64_give(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], corpus: Corpus, log_of: LogOf
) -> None:
    shares = {"llama": 0.7, "gpt2": 0.2}
    settings = make_settings(
        teachers={name: {"cache": caches[name].output, "weight": share} for name, share in shares.items()},
        objective={"hard": 0.4, "logit": 0.6, "temperature": 2.0},
        windows={"length": 16, "views": 2},
        micro_batch=4,
        log_every=1,
    )
    train(settings)
    logged = log_of(settings, "loss")[0]

    tokens = first_windows(settings, corpus, stop=16)
    student = settings.model.build(corpus, settings.seed).double()
    logits = student(input_ids=tokens).logits
    loss = 0.4 * F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert logged["hard"] == pytest.approx(loss.item() / 0.4, rel=1e-5)
    for name, share in shares.items():
        teacher = AutoModelForCausalLM.from_pretrained(caches[name].models()[SINGLE]).double()
        with torch.inference_mode():
            spoken = teacher(input_ids=tokens).logits
        term = 2.0**2 * tail_bucket(logits, spoken.clone(), k=8, temperature=2.0)
        assert logged[f"logit/{name}"] == pytest.approx(term.item(), rel=1e-4)
        loss = loss + 0.6 * share * term
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
    norm = torch.cat(gradients).norm().item()
    assert logged["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_micro_batches_only_share_out_a_step(make_settings: MakeSettings) -> None:
    whole = make_settings("whole", optimizer={"learning_rate": 1e-3, "warmup_steps": 3})
    train(whole)
    for micro_batch in (1, 8):
        parts = make_settings(f"by-{micro_batch}", **whole.model_dump(include={"optimizer"}), micro_batch=micro_batch)
        train(parts)
        # Sums in another order, 20 Adam steps of 1e-3 at most: the weights themselves move by some 1e-2.
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(weights(parts)[name], tensor, rtol=0, atol=2e-5)


def test_a_micro_batch_that_does_not_divide_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings(micro_batch=12)
    with pytest.raises(
        UserError, match="micro_batch is 12, but a process has 16 windows of each global batch.*choose 8"
    ):
        train(settings)
    assert not settings.output.exists()


def test_the_same_seed_gives_the_same_bits_dropout_included(
    make_settings: MakeSettings, make_shape: Callable[..., ModelShape]
) -> None:
    model = make_shape("gpt2", dropout=0.2)
    runs = [make_settings(name, model=model, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    results = []
    for settings in runs:
        torch.rand(3)  # what was drawn before does not matter
        results.append(train(settings).validation_cross_entropy)
    files = [(settings.output / "model.safetensors").read_bytes() for settings in runs]
    assert files[0] == files[1] != files[2]
    assert results[0] == results[1] != results[2]


def test_a_control_reads_the_windows_of_a_student_in_the_same_order(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], log_of: LogOf
) -> None:
    # Weights that stand still make the cross-entropy of each step a fingerprint of its windows.
    still = {"optimizer": {"learning_rate": 1e-30, "weight_decay": 0}, "log_every": 1, "epochs": 2, "global_batch": 8}
    control = make_settings("control", **still)
    student = make_settings(
        "student",
        **still,
        teachers={"llama": {"cache": caches["llama"].output}},
        objective={"hard": 0.5, "logit": 0.5},
    )
    for settings in (control, student):
        train(settings)
    read = [[line["hard"] for line in log_of(settings, "hard")] for settings in (control, student)]
    assert read[0] == read[1]
    assert len(set(read[0])) == len(read[0]) > 80


def test_a_teacher_without_weight_changes_no_bit(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings]
) -> None:
    control = make_settings("control")
    student = make_settings("student", teachers={"llama": {"cache": caches["llama"].output}})
    for settings in (control, student):
        train(settings)
    assert (control.output / "model.safetensors").read_bytes() == (student.output / "model.safetensors").read_bytes()


def test_distillation_moves_a_student_to_its_teacher(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], log_of: LogOf
) -> None:
    settings = make_settings(
        teachers={"llama": {"cache": caches["llama"].output}},
        objective={"hard": 0.0, "logit": 1.0},
        fraction=1.0,
        log_every=5,
    )
    train(settings)
    terms = [line["logit/llama"] for line in log_of(settings, "logit/llama")]
    assert terms[-1] < 0.7 * terms[0]
    assert "hard" not in log_of(settings, "loss")[0]


def test_a_run_that_is_whole_is_not_trained_again(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], contents: Contents
) -> None:
    settings = make_settings()
    result = train(settings)
    before = contents(settings.output)
    assert {"config.yaml", "metrics.jsonl", "result.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    assert train(settings) == result
    assert "finished already" in capsys.readouterr().err
    assert contents(settings.output) == before
    moved = make_settings("moved")
    settings.output.rename(moved.output)
    assert train(moved) == result


def test_what_a_killed_run_left_ends_as_an_undisturbed_one(
    make_settings: MakeSettings, contents: Contents, log_of: LogOf
) -> None:
    settings = make_settings()
    train(settings)
    before = contents(settings.output)
    metrics = log_of(settings, "loss")
    (settings.output / "result.json").unlink()
    (settings.output / "model.safetensors").write_bytes(b"half")
    leftover = settings.output / f"model.{'0' * 32}.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    train(settings)
    after = contents(settings.output)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {
        "metrics.jsonl",
        "calls.jsonl",
        "result.json",
    }  # seconds
    assert len(Run(settings.output).calls()) == 2
    assert [line["loss"] for line in log_of(settings, "loss")] == [line["loss"] for line in metrics]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed is 0 there, but 1 is expected"),
        (
            {"optimizer": {"learning_rate": 0.02, "warmup_steps": 3}},
            "optimizer.learning_rate is 0.01 there, but 0.02 is expected",
        ),
        (
            {"teachers": {"a": {"cache": "x"}}},
            "teachers.a is None there, but {'source': 'cache', 'weight': 1.0, 'layers': 'uniform'",
        ),
    ],
)
def test_another_configuration_in_the_same_output_is_refused(
    make_settings: MakeSettings, changes: dict[str, object], message: str, contents: Contents
) -> None:
    settings = make_settings(fraction=0.05)
    train(settings)
    before = contents(settings.output)
    other = make_settings(**{"fraction": 0.05} | changes)
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        train(other)
    assert str(refusal.value).endswith("delete it or choose another output")
    assert contents(settings.output) == before


def test_a_directory_with_something_else_is_left_alone(make_settings: MakeSettings, contents: Contents) -> None:
    settings = make_settings()
    settings.output.mkdir()
    (settings.output / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and not a run; choose another output"):
        train(settings)
    assert contents(settings.output) == {"thesis.tex": b"precious"}


def test_bf16_computes_coarsely_and_keeps_float32_weights(make_settings: MakeSettings) -> None:
    fine, coarse = make_settings("fine"), make_settings("coarse", precision="bf16")
    losses = [train(settings).validation_cross_entropy for settings in (fine, coarse)]
    assert {tensor.dtype for tensor in weights(coarse).values()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    again = make_settings("fine again")  # precision does not leak into the next run of the process
    assert train(again).validation_cross_entropy == losses[0]


def test_tensorboard_gets_what_the_metrics_hold(make_settings: MakeSettings, log_of: LogOf) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    settings = make_settings(trackers=["tensorboard"])
    train(settings)
    (file,) = (settings.output / "palenka").glob("events.out.tfevents.*")
    found = {
        (value.tag, event.step): value.tensor.float_val[0]
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    expected = {
        (key, line["step"]): value
        for line in log_of(settings, "step", speeds=True)
        for key, value in line.items()
        if key != "step"
    }
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings(trackers=["wandb"])
    with pytest.raises(UserError, match="tracker wandb is not installed; pip install wandb, or take it out of"):
        train(settings)
    assert not settings.output.exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_one_sentence(make_settings: MakeSettings, log_of: LogOf) -> None:
    settings = make_settings(optimizer={"learning_rate": 1e30, "warmup_steps": 0}, log_every=1)
    with pytest.raises(
        UserError,
        match=r"is not finite at step 2, .* student's side; lower optimizer.learning_rate \(1e\+30\), or lengthen",
    ) as stop:
        train(settings)
    assert "\n" not in str(stop.value)
    assert not (settings.output / "result.json").exists()
    assert all(math.isfinite(line["loss"]) for line in log_of(settings, "loss"))


def test_settings_that_fit_no_corpus_or_machine_are_refused_before_anything_is_written(
    make_settings: MakeSettings, corpus: Corpus
) -> None:
    windows = round(len(corpus.tokens) // 16 * 0.01)
    refused: list[tuple[Mapping[str, object], str]] = [
        ({"windows": {"length": 33}}, "windows have 33 tokens, but model has 32 positions; shorten windows.length"),
        ({"fraction": 0.01}, f"are {windows} windows of 16 tokens, but global_batch is 16; lower it"),
        ({"split": "other"}, "has no split 'other'; choose one that it has: train, dev, test"),
    ]
    if not torch.cuda.is_available():
        refused.append(({"precision": "fp16"}, "precision fp16 needs a CUDA GPU; choose bf16 or float32 on cpu"))
    for changes, message in refused:
        settings = make_settings(**changes)
        with pytest.raises(UserError, match=re.escape(message)):
            train(settings)
        assert not settings.output.exists()


def test_a_validation_split_that_is_not_there_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(UserError, match="has no split 'other'"):
        train(make_settings(validation={"split": "other"}))


def test_a_cache_that_does_not_fit_is_refused_with_both_sides(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], corpus: Corpus
) -> None:
    llama = caches["llama"]
    teachers = {"mine": {"cache": llama.output}}
    distil = {"objective": {"logit": 1.0}}
    dev = Corpus.open(llama.corpus, "dev").fingerprint
    refused: list[tuple[Mapping[str, object], str]] = [
        ({"split": "dev"}, f"corpus is '{corpus.fingerprint}' there, but '{dev}' is expected"),
        ({"windows": {"length": 8}}, "windows.length is 16 there, but 8 is expected"),
        ({"windows": {"length": 16, "permutation_seed": 3}}, "windows.permutation_seed is 0 there, but 3 is expected"),
        ({"windows": {"length": 16, "views": 3}, "epochs": 3}, "holds 2 view(s), but windows.views is 3"),
        (
            {"objective": {"logit": 1.0, "temperature": 3.0}},
            "holds the tail mass at temperatures 1.0, 2.0, but objective.temperature is 3.0; choose one of these",
        ),
    ]
    for changes, message in refused:
        settings = make_settings(teachers=teachers, **distil | dict(changes))
        with pytest.raises(UserError, match=re.escape(message)) as refusal:
            train(settings)
        assert str(refusal.value).startswith(f"cache {llama.output} of teacher mine ")
        assert not settings.output.exists()


def test_a_cache_of_another_tokenizer_is_refused_with_both_sides(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "text" / f"other.{split}").write_text("quite another text , with other words .\n" * 200)
    prepare(CorpusSettings(sources=tmp_path / "text", output=tmp_path / "corpus", vocabulary_size=290))
    other = Corpus.open(tmp_path / "corpus", "train")
    distil = {"objective": {"logit": 1.0}}
    settings = make_settings(corpus=other.directory, teachers={"llama": {"cache": caches["llama"].output}}, **distil)
    message = f"tokenizer is '{corpus.tokenizer_hash}' there, but '{other.tokenizer_hash}' is expected"
    with pytest.raises(UserError, match=message):
        train(settings)


def test_a_cache_of_another_teacher_is_refused_with_both_sides(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], make_teacher: Callable[..., Path]
) -> None:
    llama = caches["llama"]
    other = make_teacher("llama", seed=99)

    def told(model: Path) -> TrainSettings:
        teachers = {"llama": {"cache": llama.output, "model": model}}
        return make_settings(fraction=0.05, teachers=teachers, objective={"logit": 1.0})

    with pytest.raises(UserError, match=r"weights is '(\w{64})' there, but '(?!\1)\w{64}' is expected") as no:
        train(told(other))
    assert str(other) in str(no.value)
    train(told(llama.models()[SINGLE]))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is damaged: {file} is missing; `palenka cache run` captures it anew"),
        (lambda path: path.write_bytes(b""), "is damaged: {file} has 0 bytes where"),
        (flip_bit, "is damaged: {file} differs from its checksum"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "is damaged: {file} differs from its checksum"),
    ],
    ids=["missing", "empty", "bit flip", "zeros"],
)
@pytest.mark.parametrize("array", ["ids", "values", "log_odds"])
def test_a_missing_or_damaged_shard_is_named_and_never_read_as_zeros(
    make_settings: MakeSettings,
    caches: dict[str, CaptureSettings],
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    array: str,
) -> None:
    shutil.copytree(caches["llama"].output, tmp_path / "cache")
    file = f"logits/{array}/c/0/0/0/0"
    damage(tmp_path / "cache" / file)
    settings = make_settings(teachers={"llama": {"cache": tmp_path / "cache"}}, objective={"logit": 1.0})
    with pytest.raises(UserError, match=re.escape(message.format(file=file))):
        train(settings)
    assert not (settings.output / "result.json").exists()


def test_shards_that_were_not_captured_are_not_missed_unless_they_are_read(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], tmp_path: Path
) -> None:
    captured = caches["llama"].model_copy(update={"output": tmp_path / "cache", "fraction": 0.1})
    capture(captured)
    teachers = {"llama": {"cache": captured.output}}
    train(make_settings("part", fraction=0.1, teachers=teachers, objective={"logit": 1.0}))
    with pytest.raises(UserError, match="lacks 1 of the shards needed: commits/0-1.json is missing"):
        train(make_settings("whole", fraction=1.0, teachers=teachers, objective={"logit": 1.0}))


def test_views_that_no_epoch_reads_are_not_missed(
    make_settings: MakeSettings, caches: dict[str, CaptureSettings], tmp_path: Path
) -> None:
    shutil.copytree(caches["llama"].output, tmp_path / "cache")
    for record in (tmp_path / "cache" / "commits").glob("1-*.json"):
        record.unlink()
    changes = {"windows": {"length": 16, "views": 2}, "teachers": {"llama": {"cache": tmp_path / "cache"}}}
    train(make_settings("first view", objective={"logit": 1.0}, **changes))
    with pytest.raises(UserError, match="shards needed: commits/1-0.json is missing"):
        train(make_settings("both views", objective={"logit": 1.0}, epochs=2, **changes))


def test_teacher_terms_without_teachers_and_no_terms_at_all_are_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ValueError, match="objective.logit is 0.5, but there are no teachers; name one in teachers"):
        make_settings(objective={"logit": 0.5})
    with pytest.raises(ValueError, match="no term has a weight; set objective.hard above 0"):
        make_settings(objective={"hard": 0})


def test_a_finished_run_is_not_taken_for_that_of_a_cache_captured_anew(
    make_settings: MakeSettings,
    caches: dict[str, CaptureSettings],
    make_teacher: Callable[..., Path],
    tmp_path: Path,
    changed: Callable[..., CaptureSettings],
) -> None:
    first = changed(caches["llama"], output=tmp_path / "c", fraction=0.05)
    capture(first)
    settings = make_settings(fraction=0.05, teachers={"t": {"cache": first.output}}, objective={"logit": 1.0})
    train(settings)
    shutil.rmtree(first.output)
    capture(changed(first, teacher=make_teacher("llama", seed=77)))
    with pytest.raises(UserError, match=r"teachers.teacher.weights is '\w{64}' there, but '\w{64}' is expected"):
        train(settings)


def test_a_refused_validation_split_leaves_the_output_free(make_settings: MakeSettings) -> None:
    with pytest.raises(UserError, match="has no split 'other'"):
        train(make_settings(validation={"split": "other"}))
    train(make_settings())
