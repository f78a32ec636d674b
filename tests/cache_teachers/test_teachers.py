"""Teachers of any kind: padded vocabularies, Hub ids, files of other kinds, and independence of the batch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, ByT5Tokenizer

from palenka.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.plan import plan
from palenka.cache_teachers.settings import SINGLE, CaptureSettings, PlanSettings, TeacherSettings, VerifySettings
from palenka.cache_teachers.teacher import Teacher
from palenka.cache_teachers.verify import verify
from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows, window_losses
from palenka.data.model_files import load_model
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import read_manifest
from palenka.data.windows import WindowRule, gather
from palenka.ground.errors import UserError

Changed = Callable[..., CaptureSettings]

LENGTH, PADDING = 16, 64
LOW_RANK = {"kind": "low_rank", "k": 4, "rank": 4}


@pytest.fixture(scope="module")
def padded(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with logits for 64 more tokens than there are, which it likes very much."""
    directory = tmp_path_factory.mktemp("padded") / "teacher"
    shutil.copytree(teacher, directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + PADDING)
    with torch.no_grad():
        model.get_output_embeddings().weight[size:] = 2 * model.get_output_embeddings().weight[100 : 100 + PADDING]
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("logits", [LOW_RANK, {"kind": "topk", "k": 8}, {"kind": "sampled"}])
def test_a_padded_teacher_says_what_it_would_say_without_padding(
    logits: dict[str, object],
    teacher: Path,
    padded: Path,
    capture_settings: CaptureSettings,
    tmp_path: Path,
    changed: Changed,
) -> None:
    said = []
    for name, model in (("plain", teacher), ("padded", padded)):
        settings = changed(capture_settings, teacher=model, output=tmp_path / name, logits=logits, fraction=0.2)
        capture(settings)
        cache = TeacherCache(settings.output)
        said.append(cache.read(0, np.arange(32)).at(1.0))
        assert cache.manifest.vocabulary_size == 320
    if logits["kind"] == "sampled":  # draws are the teacher's own
        ids = said[1].ids
        assert ids is not None
        assert ids.max() < 320
        return
    plain, without = said
    assert plain.ids is not None
    assert without.ids is not None
    assert torch.equal(plain.ids, without.ids)
    torch.testing.assert_close(plain.log_kept, without.log_kept, rtol=0, atol=0.02)
    torch.testing.assert_close(plain.log_tail, without.log_tail, rtol=0, atol=0.02)


def test_the_mass_of_the_padding_is_told_and_verify_agrees_with_the_teacher(
    teacher: Path, padded: Path, capture_settings: CaptureSettings, corpus: Corpus, changed: Changed
) -> None:
    settings = changed(capture_settings, teacher=padded, logits=LOW_RANK, fraction=0.2)
    found = plan(PlanSettings.model_validate(settings.as_plain() | {"sample": 32}))
    tokens = torch.from_numpy(gather(corpus.tokens, settings.windows, 0, settings.windows.slots(len(corpus.tokens), 0)))
    model: Any = AutoModelForCausalLM.from_pretrained(padded).double()
    with torch.no_grad():
        expected = model(tokens[:32]).logits.softmax(-1)[..., 320:].sum(-1).mean().item()
    assert expected > 0.01
    assert found["padding_mass"] == {SINGLE: pytest.approx(expected, rel=1e-4)}
    assert "padding_mass" not in plan(
        PlanSettings.model_validate(changed(settings, teacher=teacher).as_plain() | {"sample": 8})
    )
    capture(settings)
    errors = verify(VerifySettings.model_validate(settings.as_plain()))
    assert errors["differing_codes"]["logits/ids"] == 0
    assert errors["low_rank"]["1.0"] < 0.5


def test_padding_counts_in_no_held_out_figure(teacher: Path, padded: Path, corpus: Corpus) -> None:
    windows = fixed_windows(corpus, LENGTH, 16)
    plain, without = (
        np.concatenate(list(window_losses(load_model(each, torch.device("cpu")), windows, 320, 4)))
        for each in (teacher, padded)
    )
    np.testing.assert_allclose(plain, without, rtol=1e-6)


KINDS: dict[str, dict[str, object]] = {
    "llama": {},
    "gpt2": {"n_positions": 32},
    "gptj": {"rotary_dim": 8, "n_positions": 32},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "cohere": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
    "mamba": {},
}


@pytest.fixture
def any_teacher(corpus: Corpus, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a model of any type with random weights, sharp enough to have opinions."""

    def make(model_type: str) -> Path:
        kind: Any = CONFIG_MAPPING[model_type]
        shape: dict[str, object] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape |= {"num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 32}
        shape |= {"vocab_size": 320, "pad_token_id": None}
        known = {*kind().to_dict(), *kind.attribute_map}
        config = kind(**{name: value for name, value in (shape | KINDS[model_type]).items() if name in known})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                parameter.data.mul_(2.0)
        model.save_pretrained(tmp_path / model_type)
        for path in (corpus.directory / "tokenizer").iterdir():
            shutil.copyfile(path, tmp_path / model_type / path.name)
        return tmp_path / model_type

    return make


@pytest.mark.parametrize("model_type", KINDS)
def test_states_and_logits_do_not_depend_on_the_batch(
    model_type: str, any_teacher: Callable[[str], Path], corpus: Corpus
) -> None:
    settings = TeacherSettings.model_validate(
        {"teacher": any_teacher(model_type), "logits": LOW_RANK, "hidden": {"layers": [0, 1, 2]}}
    )
    rule = WindowRule(length=LENGTH)
    teacher = Teacher(settings, corpus, rule, torch.device("cpu"))
    tokens = torch.from_numpy(gather(corpus.tokens, rule, 0, rule.slots(len(corpus.tokens), 0)[:33]))

    def said(*batches: Tensor) -> dict[str, Tensor]:
        outputs = [teacher.outputs(batch) for batch in batches]
        parts = [{"logits": each.logits, "last": each.last[SINGLE], **each.hidden} for each in outputs]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    alone = said(*tokens.split(1))
    assert set(alone) == {"logits", "last", "teacher/0", "teacher/1", "teacher/2"}
    backwards = {name: values.flip(0) for name, values in said(*tokens.flip(0).split(7)).items()}
    for other in (said(tokens), said(*tokens.split(4)), backwards):
        for name, values in alone.items():
            difference = (other[name] - values).abs().max() / values.abs().max()
            assert difference < 1e-5, name


def test_attention_is_torchs(teacher: Path) -> None:
    assert load_model(teacher, torch.device("cpu")).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["model.gguf"], r"a directory instead of GGUF, which `palenka data convert FILE.gguf --output DIR` makes"),
        (
            ["pytorch_model.bin"],
            r"pickles such as \*.bin are never loaded, for they can run code; load the",
        ),
        ([], r"has no model\*.safetensors weights; give the directory of a model saved with save_pretrained"),
    ],
)
def test_files_of_other_kinds_are_refused_with_what_to_do(
    files: list[str], sentence: str, teacher: Path, capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(teacher, directory)
    (directory / "model.safetensors").unlink()
    for name in files:
        (directory / name).write_bytes(b"weights")
    with pytest.raises(UserError, match=sentence):
        capture(changed(capture_settings, teacher=directory))
    for name in files:
        with pytest.raises(UserError, match=sentence):
            capture(changed(capture_settings, teacher=directory / name))


def test_a_tokenizer_file_of_another_version_is_the_same_tokenizer(
    teacher: Path, capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    capture(changed(capture_settings, fraction=0.1))
    begun = read_manifest(capture_settings.output)
    other = shutil.copytree(teacher, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    # As earlier versions wrote them.
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"].pop("ignore_merges")
    (other / "tokenizer.json").write_text(json.dumps(content))
    capture(changed(capture_settings, teacher=other))
    assert read_manifest(capture_settings.output) == begun
    assert len(TeacherCache(capture_settings.output).committed()) == len(list(begun.shards()))


def with_two_tokens_swapped(teacher: Path, place: Path) -> Path:
    """The teacher with a tokenizer of the same size that maps text to other ids."""
    shutil.copytree(teacher, place)
    content = json.loads((place / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (place / "tokenizer.json").write_text(json.dumps(content))
    return place


def test_another_mapping_of_the_same_size_is_refused_with_both_named(
    teacher: Path, capture_settings: CaptureSettings, corpus: Corpus, tmp_path: Path, changed: Changed
) -> None:
    other = with_two_tokens_swapped(teacher, tmp_path / "other")
    both = (
        rf"teacher {other} has another tokenizer \(320 tokens, \w{{12}}\) than corpus {corpus.directory} \(320 tokens, "
    )
    with pytest.raises(UserError, match=both):
        capture(changed(capture_settings, teacher=other))


def test_a_padded_teacher_of_another_tokenizer_is_named_by_the_tokens_that_it_has(
    padded: Path, capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    other = with_two_tokens_swapped(padded, tmp_path / "other")
    with pytest.raises(UserError, match=rf"teacher {other} has another tokenizer \(320 tokens, "):
        capture(changed(capture_settings, teacher=other))


def test_a_teacher_with_a_slow_tokenizer_is_refused(
    teacher: Path, capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    for path in other.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(other)
    with pytest.raises(UserError, match=r"has a slow tokenizer \(ByT5Tokenizer, .* convert it to a tokenizer\.json"):
        capture(changed(capture_settings, teacher=other))


def test_who_brings_a_model_without_a_corpus_of_its_tokenizer_is_told_what_to_run(
    teacher: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_on_the_hub(with_two_tokens_swapped(teacher, tmp_path / "other"), tmp_path / "hub", monkeypatch)
    run = ["cache", "run", "--teacher", "some/teacher", "--output", str(tmp_path / "cache")]
    prepare = "`palenka data prepare --sources TEXT --output CORPUS --tokenizer some/teacher`"
    for corpus_options, sentence in (
        ([], "corpus is missing; prepare text with the teacher's tokenizer, `palenka data prepare --sources TEXT "),
        (["--corpus", str(tmp_path / "none")], "none`, and with --tokenizer MODEL if it is for a model that exists"),
        (["--corpus", str(corpus.directory)], f"prepare text with that of the teacher, {prepare}, or choose a teacher"),
    ):
        assert main([*run, *corpus_options]) == 2
        assert sentence in capsys.readouterr().err


def test_code_that_a_model_brings_is_not_run(
    teacher: Path, capture_settings: CaptureSettings, tmp_path: Path, changed: Changed
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(teacher, directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"brings code of its own for its model \(own\), which is never run here"):
        capture(changed(capture_settings, teacher=directory))
    assert not (tmp_path / "ran").exists()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_on_the_hub(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a model into the Hub's cache on this machine as ``some/teacher``, and takes the network away."""
    repository = folder / "models--some--teacher"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_teacher_of_the_hub_is_kept_by_its_commit_and_is_the_same_elsewhere(
    teacher: Path, capture_settings: CaptureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Changed
) -> None:
    put_on_the_hub(teacher, tmp_path / "hub", monkeypatch)
    capture(changed(capture_settings, teacher="some/teacher", fraction=0.1))
    manifest = read_manifest(capture_settings.output)
    assert manifest.teachers[SINGLE].source == f"some/teacher@{COMMIT}"
    # The rest may be captured from a copy of the same weights.
    capture(changed(capture_settings, teacher=teacher))
    assert read_manifest(capture_settings.output) == manifest
    assert len(TeacherCache(capture_settings.output).committed()) == len(list(manifest.shards()))
