"""Capture: the cache is the teacher, whatever interrupted it; what does not fit is refused."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import SINGLE, CaptureSettings
from palenka.cache_teachers.shard_in_memory import ShardInMemory
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.cache_writer import CacheWriter
from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.stream import ReadingOrder, read_batch
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.objective import Objective
from palenka.train_student.objective.settings import ObjectiveSettings

Contents = Callable[[Path], dict[str, bytes]]
Changed = Callable[..., CaptureSettings]


def test_a_float32_cache_of_everything_gives_the_live_teachers_loss_and_gradients(
    capture_settings: CaptureSettings, corpus: Corpus, make_shape: Callable[..., ModelShape], changed: Changed
) -> None:
    vocabulary = corpus.vocabulary_size
    settings = changed(capture_settings, logits={"k": vocabulary, "values": "float32"})
    capture(settings)
    order = ReadingOrder(settings.windows, len(corpus.tokens), seed=3, epochs=1)
    cache = TeacherCache(settings.output)
    batch = read_batch(corpus, order, {"t": cache}, 5, 45).decode({"t": cache})
    teacher = AutoModelForCausalLM.from_pretrained(settings.models()[SINGLE])
    for temperature in (1.0, 2.0):
        student = make_shape("gpt2").build(corpus, seed=9)
        settings_of_terms = ObjectiveSettings.model_validate({"hard": 0.25, "logit": 0.5, "temperature": temperature})
        objective = Objective(student, settings_of_terms, {}, seed=0)
        loss, _ = objective(batch, settings_of_terms.weights({"t": 0.8}))
        loss.backward()
        cached = [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]
        student.zero_grad()
        # The live teacher, written down with what torch and transformers have.
        with torch.no_grad():
            target = (teacher(input_ids=batch.tokens).logits / temperature).log_softmax(-1)
        output = student(input_ids=batch.tokens, labels=batch.tokens)
        divergence = torch.nn.functional.kl_div(
            (output.logits / temperature).log_softmax(-1).flatten(0, 1),
            target.flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        live = 0.25 * output.loss + 0.5 * 0.8 * temperature**2 * divergence
        live.backward()
        assert loss.item() == pytest.approx(live.item(), abs=1e-5)
        for ours, parameter in zip(cached, (p for p in student.parameters() if p.grad is not None), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_resumed_capture_is_byte_for_byte_an_undisturbed_one(
    capture_settings: CaptureSettings, contents: Contents, changed: Changed
) -> None:
    settings = changed(capture_settings, windows={"length": 16, "views": 2})
    capture(settings)
    whole = contents(settings.output)
    files = sorted(name for name in whole if "/c/" in name)
    # A record lost, a shard lost, a shard damaged, files left behind by a killed writer.
    (settings.output / "commits" / "1-0.json").unlink()
    (settings.output / files[0]).unlink()
    (settings.output / files[-1]).write_bytes(b"\0" * len(whole[files[-1]]))
    (settings.output / "logits" / "ids" / "c" / "0" / "0" / "0" / f"0.{'0' * 32}.partial").write_bytes(b"half")
    capture(settings)
    assert contents(settings.output) == whole


def test_a_killed_creation_is_made_anew(capture_settings: CaptureSettings) -> None:
    leftover = capture_settings.output.with_name(f"cache.{'0' * 32}.partial")
    (leftover / "logits").mkdir(parents=True)
    (leftover / "zarr.json").write_text("{")
    capture(capture_settings)
    assert not leftover.exists()
    TeacherCache(capture_settings.output)


def test_a_fraction_and_then_the_rest_are_the_whole(
    capture_settings: CaptureSettings, tmp_path: Path, contents: Contents, changed: Changed
) -> None:
    whole = changed(capture_settings, output=str(tmp_path / "whole"))
    capture(whole)
    capture(changed(capture_settings, fraction=0.1))
    cache = TeacherCache(capture_settings.output)
    _, *others = cache.manifest.shards()
    assert others, "the corpus should have several shards"
    cache.require_shards(cache.manifest.shards(0.1))
    with pytest.raises(UserError, match=f"lacks {len(others)} of the shards needed"):
        cache.require_shards(cache.manifest.shards())
    capture(capture_settings)
    assert contents(capture_settings.output) == contents(whole.output)


def test_progress_ends_at_all_tokens(capture_settings: CaptureSettings, capsys: pytest.CaptureFixture[str]) -> None:
    capture(capture_settings)
    bar = capsys.readouterr().err.splitlines()[-1]
    assert bar.startswith("capture ")
    assert " 100 % " in bar


def test_tail_mass_is_kept_at_the_temperatures_asked_for(capture_settings: CaptureSettings, changed: Changed) -> None:
    settings = changed(capture_settings, logits={"k": 4, "temperatures": [1.0, 3.0]})
    capture(settings)
    cache = TeacherCache(settings.output)
    masses = cache.kept_mass()
    assert list(masses) == [1.0, 3.0]
    assert 0 < masses[3.0] < masses[1.0] < 1


def test_what_does_not_fit_is_refused_with_both_sides(
    capture_settings: CaptureSettings, corpus: Corpus, tmp_path: Path, changed: Changed
) -> None:
    with pytest.raises(UserError, match=rf"logits.k is 999, but the vocabulary .* has {corpus.vocabulary_size}"):
        capture(changed(capture_settings, logits={"k": 999}))
    with pytest.raises(UserError, match=r"windows have 33 tokens, but teacher .* has 32 positions"):
        capture(changed(capture_settings, windows={"length": 33}))
    with pytest.raises(UserError, match=rf"windows.length is 99999, .* only {len(corpus.tokens)} tokens"):
        capture(changed(capture_settings, windows={"length": 99_999}))
    with pytest.raises(UserError, match="not a Hugging Face model"):
        capture(changed(capture_settings, teacher=str(tmp_path)))
    with pytest.raises(UserError, match="has no split"):
        capture(changed(capture_settings, split="other"))
    assert not capture_settings.output.exists()


def test_a_teacher_with_another_tokenizer_is_refused(
    capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "other.train").write_text("quite another text , with other words .\n" * 50)
    (tmp_path / "text" / "other.dev").write_text("with other words .\n" * 50)
    other = CorpusSettings(sources=tmp_path / "text", output=tmp_path / "corpus", vocabulary_size=290)
    prepare(other)
    with pytest.raises(
        UserError,
        match=r"another tokenizer \(320 tokens, \w+\) than corpus .* \(281 tokens, \w+\); prepare text with that",
    ):
        capture(changed(capture_settings, corpus=str(other.output)))


def test_a_cache_of_another_teacher_is_not_continued(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path], changed: Changed
) -> None:
    capture(capture_settings)
    with pytest.raises(UserError, match=r"teacher.weights is '[0-9a-f]{64}' there, but '[0-9a-f]{64}' is expected"):
        capture(changed(capture_settings, teacher=str(make_teacher("llama", seed=2))))
    with pytest.raises(UserError, match=r"teacher.precision is 'float32' there, but 'bf16' is expected"):
        capture(changed(capture_settings, precision="bf16"))


def test_a_disk_that_is_slow_for_a_while_does_not_stop_the_teacher(
    hidden_capture: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, write = ShardInMemory.add, CacheWriter.write
    begun: list[ShardInMemory] = []
    third_has_begun = threading.Event()

    def seen(shard: ShardInMemory, *args: Any) -> None:
        if not any(shard is each for each in begun):
            begun.append(shard)
        if len(begun) == 3:
            third_has_begun.set()
        add(shard, *args)

    def slow(writer: CacheWriter, *args: Any) -> None:
        assert third_has_begun.wait(60), "the teacher waits for the disk"
        write(writer, *args)

    monkeypatch.setattr(ShardInMemory, "add", seen)
    monkeypatch.setattr(CacheWriter, "write", slow)
    windows = hidden_capture.windows.model_copy(update={"views": 2})
    capture(hidden_capture.model_copy(update={"windows": windows}))
    assert len(begun) >= 3, "the corpus should have several shards"
    assert TeacherCache(hidden_capture.output).captured_tokens() > 0


def test_a_teacher_that_is_not_finite_is_refused_and_leaves_no_shard(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path], changed: Changed, tmp_path: Path
) -> None:
    directory = make_teacher("llama", seed=5)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], math.nan)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    for kind in ("topk", "low_rank", "sampled", "hybrid"):
        output = tmp_path / kind
        logits = {"kind": kind, "temperatures": [1.0]}
        with pytest.raises(UserError, match="logits that are not finite in float32"):
            capture(changed(capture_settings, teacher=str(directory), output=str(output), logits=logits))
        assert not list(output.glob("commits/0-*.json"))


def test_pickled_weights_are_not_loaded(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path], changed: Changed
) -> None:
    directory = make_teacher("llama", seed=6)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\*.safetensors weights"):
        capture(changed(capture_settings, teacher=str(directory)))


def test_coarse_values_are_close_and_smaller(
    capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    exact = changed(
        capture_settings, logits={"kind": "topk", "k": 8, "values": "float32"}, output=str(tmp_path / "exact")
    )
    capture(capture_settings)
    capture(exact)
    rough_cache, exact_cache = TeacherCache(capture_settings.output), TeacherCache(exact.output)
    for name in ("logits/values", "logits/log_odds"):
        assert rough_cache.bytes_per_token()[name] < exact_cache.bytes_per_token()[name]
    slots = np.arange(50, dtype=np.int64)
    rough, fine = (cache.read(0, slots).at(2.0).log_kept.double() for cache in (rough_cache, exact_cache))
    divergence = (fine.exp() * (fine - rough)).sum(-1).mean()
    assert abs(divergence.item()) < 1e-3


def test_a_capture_that_cannot_fit_does_not_begin(
    capture_settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palenka.cache_teachers.capture.free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"needs about [\d.]+ kB, but its disk has 1.0 kB free; make room"):
        capture(capture_settings)
    assert not list((capture_settings.output / "commits").glob("0-*.json"))


def test_encoding_and_rule_round_trip_to_json() -> None:
    for value in (TopKEncoding(k=3, temperatures=(1.0, 4.0)), WindowRule(length=5, views=3)):
        assert type(value).model_validate_json(value.model_dump_json()) == value


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", '{"model_type": "oracle"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": 16, "num_attention_heads": 32}'),
        ("model.safetensors", "not tensors"),
    ],
)
def test_a_model_that_cannot_be_read_is_one_sentence(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path], file: str, content: str, changed: Changed
) -> None:
    directory = make_teacher("llama", seed=7)
    (directory / file).write_text(content)
    with pytest.raises(UserError, match=f"{directory} is not a causal language model that can be read") as refusal:
        capture(changed(capture_settings, teacher=str(directory)))
    assert "\n" not in str(refusal.value)


def test_a_teacher_without_blocks_is_refused(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path], changed: Changed
) -> None:
    directory = make_teacher("llama", seed=9)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0}))
    with pytest.raises(UserError, match="has no blocks: num_hidden_layers is 0 in its config"):
        capture(changed(capture_settings, teacher=str(directory), logits={"kind": "low_rank"}))


def test_a_teacher_that_lacks_a_tensor_is_refused(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path], changed: Changed
) -> None:
    directory = make_teacher("llama", seed=8)
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has 1 missing tensors, such as model.layers.0.mlp.up_proj.weight"):
        capture(changed(capture_settings, teacher=str(directory)))
