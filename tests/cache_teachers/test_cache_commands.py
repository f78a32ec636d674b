"""plan, verify and inspect: their figures against what a capture makes, and damage of every kind named."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.inspect import inspect
from palenka.cache_teachers.plan import plan
from palenka.cache_teachers.settings import CaptureSettings, InspectSettings, PlanSettings, VerifySettings
from palenka.cache_teachers.verify import verify
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import read_manifest
from palenka.ground.command_line import USER_MISTAKE
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def settings(settings_of_capture: Callable[..., CaptureSettings], tmp_path: Path) -> CaptureSettings:
    """Two views, logits and hidden states."""
    windows, hidden = {"length": 16, "views": 2}, {"positions": 4, "sample_windows": 40}
    return settings_of_capture(output=tmp_path / "cache", windows=windows, hidden=hidden)


def told(command: list[str], settings: CaptureSettings, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command prints with --json, its configuration from a file."""
    file = settings.output.with_name("cache.yaml")
    settings.write_yaml(file)
    assert main([*command, "--config", str(file), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_foretells_the_bytes_of_the_capture(
    settings: CaptureSettings, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    foretold = told(["plan", "--sample", "256", "--epochs", "4"], settings, capsys)
    assert not settings.output.exists()
    capture(settings)
    found = TeacherCache(settings.output).bytes_per_token()
    assert foretold["bytes_per_token"].keys() == {*found, "all"}
    for name, size in found.items():
        assert foretold["bytes_per_token"][name] == pytest.approx(size, rel=0.15)
    tokens = sum(settings.windows.count(len(corpus.tokens), view) for view in range(2)) * 16
    assert foretold["tokens"] == tokens
    assert foretold["bytes"] == pytest.approx(tokens * foretold["bytes_per_token"]["all"], abs=1)
    assert 0 < foretold["forward_seconds"] < foretold["seconds"]
    # Four epochs of a student read a view each; from the break-even on live teachers cost more.
    live = foretold["live_seconds_per_student"]
    assert live == pytest.approx(2 * foretold["forward_seconds"])
    n = foretold["break_even_students"]
    assert (n - 1) * live <= foretold["seconds"] < n * live


def test_a_fresh_cache_is_what_its_teacher_says(settings: CaptureSettings, capsys: pytest.CaptureFixture[str]) -> None:
    capture(settings)
    found = told(["verify", "--sample", "40", "--all"], settings, capsys)
    assert found["damaged"] == {}
    assert found["windows"] == 40
    assert all(abs(divergence) < 3e-4 for divergence in found["rounding"].values())
    assert found["nondeterminism"]["largest_difference"] < 1e-4
    assert abs(found["nondeterminism"]["kl"]) < 1e-7
    assert all(0 < error < 0.04 for error in found["hidden"].values())
    mass = TeacherCache(settings.output).kept_mass()
    for temperature, missing in found["missing"].items():
        assert missing == pytest.approx(1 - mass[float(temperature)], abs=0.03)
        assert found["truncation"][temperature] > 0


def test_low_rank_is_told_from_truncation_and_rounding(
    settings: CaptureSettings, capsys: pytest.CaptureFixture[str], changed: Callable[..., CaptureSettings]
) -> None:
    errors = []
    for rank in (2, 8):
        logits = {"kind": "low_rank", "k": 8, "rank": rank}
        some = changed(settings, logits=logits, output=settings.output.with_name(f"rank-{rank}"))
        capture(some)
        found = told(["verify"], some, capsys)
        for temperature in ("1.0", "2.0"):
            assert 0 < found["low_rank"][temperature] < found["truncation"][temperature]
            assert abs(found["rounding"][temperature]) < 6e-3
        errors.append(found["low_rank"]["2.0"])
    assert errors[1] < errors[0]


def test_what_was_not_captured_from_this_teacher_is_seen(
    settings: CaptureSettings, make_teacher: Callable[..., Path]
) -> None:
    capture(settings)
    other = settings.as_plain() | {"teacher": str(make_teacher("llama", seed=12))}
    with pytest.raises(UserError, match=r"teachers.teacher.weights is '\w{64}' there, but '\w{64}' is expected"):
        verify(VerifySettings.model_validate(other))


def test_values_that_are_wrong_though_whole_show_as_codec_error(settings: CaptureSettings) -> None:
    capture(settings)
    exact = verify(VerifySettings.model_validate(settings.as_plain()))
    group = __import__("zarr").open_group(settings.output, mode="r+")
    values = group["logits/values"]
    values[0] = np.minimum(np.asarray(values[0]) + np.arange(8, dtype=np.uint8) * 4, 255).astype(np.uint8)
    for record in (settings.output / "commits").glob("0-*.json"):
        content = json.loads(record.read_text())
        from palenka.ground.records import commit

        facts = {name: content[name] for name in ("hidden_error", "shard", "store")}
        commit(settings.output, f"commits/{record.name}", content["files"], **facts)
    wrong = verify(VerifySettings.model_validate(settings.as_plain()))
    assert wrong["rounding"]["1.0"] > 20 * abs(exact["rounding"]["1.0"])


def test_inspect_shows_what_the_cache_measures(settings: CaptureSettings, capsys: pytest.CaptureFixture[str]) -> None:
    capture(settings.model_copy(update={"fraction": 0.5}))
    assert main(["inspect", str(settings.output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cache = TeacherCache(settings.output)
    assert found["manifest"] == cache.manifest.as_plain()
    assert found["bytes_per_token"]["logits/ids"] == cache.bytes_per_token()["logits/ids"]
    assert found["hidden_error"] == cache.hidden_errors()
    assert 0 < found["shards"]["captured"] < found["shards"]["all"]
    # The entropy is that of the kept tokens and one bucket: from the live teacher, in float64.
    first = cache.committed()[0]
    corpus = Corpus.open(settings.corpus, "train")
    rule = cache.manifest.windows
    indices = rule.slots(len(corpus.tokens), 0)[: min(first.stop, 256)]
    tokens = np.stack([corpus.tokens[slice(*rule.span(0, index))] for index in indices]).astype(np.int64)
    model: Any = AutoModelForCausalLM.from_pretrained(settings.models()["teacher"]).double()
    with torch.no_grad():
        probabilities = (
            (model(input_ids=torch.from_numpy(tokens)).logits / 2.0).softmax(-1).sort(descending=True).values
        )
    bucketed = torch.cat([probabilities[..., :8], probabilities[..., 8:].sum(-1, keepdim=True)], dim=-1)
    expected = -(bucketed * bucketed.log()).sum(-1).mean().item()
    assert found["entropy"]["2.0"] == pytest.approx(expected, rel=1e-3)
    assert main(["inspect", str(settings.output)]) == 0
    assert f"teacher/1 {found['hidden_error']['teacher/1']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "verify", "inspect"])
def test_what_is_found_is_read_in_eighty_columns(
    command: str, settings: CaptureSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    capture(settings)
    file = settings.output.with_name("cache.yaml")
    settings.write_yaml(file)
    capsys.readouterr()
    assert main([command, str(settings.output if command == "inspect" else file)]) == 0
    told = capsys.readouterr()
    lines = [*told.out.splitlines(), *told.err.splitlines()]
    assert max(map(len, told.out.splitlines())) <= 80
    for key in ("_per_token", "_bytes", "manifest.", "break_even", "…", "torch.", "{", "tensor("):
        assert not any(key in line for line in lines), key
    assert {"plan": "bytes a token", "verify": "by rounding", "inspect": "entropy"}[command] in told.out


def test_a_plan_reads_no_more_than_a_minute_of_windows(
    settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = PlanSettings.model_validate(settings.as_plain() | {"sample": 80})
    monkeypatch.setattr("palenka.cache_teachers.plan._MOST_TOKENS", 16 * 40)
    assert plan(many)["sample"]["tokens"] == 16 * 40
    monkeypatch.setattr("palenka.cache_teachers.plan._MOST_SECONDS", 0.0)
    assert plan(many)["sample"]["tokens"] == 16


def read_everything(directory: Path) -> None:
    """As a training run does."""
    cache = TeacherCache(directory, read_manifest(directory).hidden_keys())
    cache.require_shards(cache.manifest.shards())
    for view in range(2):
        cache.read(view, np.arange(cache.manifest.num_windows(view)))


def test_every_flipped_bit_is_named_by_verify_and_refused_by_a_reader(
    settings: CaptureSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(settings)
    file = settings.output.with_name("cache.yaml")
    settings.write_yaml(file)
    files = sorted(path for path in settings.output.rglob("*") if path.is_file())
    draw = random.Random(random.SystemRandom().randrange(10**6))
    records = [path for path in files if path.parent.name == "commits"]
    for path in [*records, *draw.choices(files, k=24)]:
        whole = path.read_bytes()
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        case = f"{path}, byte {place}, bit {bit}"
        assert main(["verify", "--config", str(file), "--all", "true", "--sample", "1"]) == USER_MISTAKE, case
        assert str(path.relative_to(settings.output)) in capsys.readouterr().err, case
        with pytest.raises(UserError, match="damaged|lacks|was changed"):
            read_everything(settings.output)
        path.write_bytes(whole)


def test_gaps_are_listed_and_filled(settings: CaptureSettings, capsys: pytest.CaptureFixture[str]) -> None:
    capture(settings)
    (settings.output / "commits" / "1-0.json").unlink()
    damaged = settings.output / "logits/ids/c/0/1/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    capture(settings)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 4 shards to capture" in said
    assert "commits/1-0.json is missing" in said
    assert "logits/ids/c/0/1/0/0 has" in said


def test_parts_capture_disjoint_shards_and_a_later_call_fills_the_gaps(
    settings: CaptureSettings, contents: Contents
) -> None:
    capture(settings)
    whole = contents(settings.output)
    shutil.rmtree(settings.output)
    for part in (2, 0):  # part 1 never ran
        capture(settings.model_copy(update={"part": part, "parts": 3}))
    assert len(TeacherCache(settings.output).committed()) == 3
    capture(settings)
    assert contents(settings.output) == whole


def test_a_part_looks_at_its_own_shards_alone(settings: CaptureSettings, capsys: pytest.CaptureFixture[str]) -> None:
    capture(settings)
    first, second, *_ = TeacherCache(settings.output).manifest.shards()
    partial = [settings.output / f"{shard.file_of('logits/ids')}.{'0' * 32}.partial" for shard in (first, second)]
    for shard, leftover in zip((first, second), partial, strict=True):
        leftover.write_bytes(b"half")
        (settings.output / shard.record).unlink()
    capsys.readouterr()
    capture(settings.model_copy(update={"part": 0, "parts": 2}))
    said = " ".join(capsys.readouterr().err.split())
    assert "part 0 of 2: 1 of 2 shards to capture" in said
    assert f"{first.record} is missing" in said
    assert second.record not in said
    assert [leftover.exists() for leftover in partial] == [False, True]
    capture(settings)
    assert not list(settings.output.rglob("*.partial"))


def test_commands_on_no_cache_are_refused(tmp_path: Path, settings: CaptureSettings) -> None:
    with pytest.raises(UserError, match="is not a teacher cache"):
        inspect(InspectSettings(cache=tmp_path))
    with pytest.raises(UserError, match="is not a teacher cache"):
        verify(VerifySettings.model_validate(settings.as_plain()))
    with pytest.raises(ValueError, match="part is 3, but there are 3 part"):
        PlanSettings.model_validate(settings.as_plain() | {"part": 3, "parts": 3})
    assert plan(PlanSettings.model_validate(settings.as_plain()))["bytes"] > 0


def test_a_plan_counts_whole_shards(settings: CaptureSettings) -> None:
    small = settings.model_copy(update={"fraction": 0.01})
    foretold = plan(PlanSettings.model_validate(small.as_plain()))
    capture(small)
    committed = TeacherCache(settings.output).committed()
    assert foretold["tokens"] == sum(shard.stop - shard.start for shard in committed) * 16


@pytest.mark.parametrize("command", [["verify", "--all"], ["verify"], ["inspect"]])
def test_damage_of_the_only_shard_is_named(
    command: list[str], capture_settings: CaptureSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    small = capture_settings.model_copy(update={"fraction": 0.1})
    capture(small)
    file = small.output.with_name("cache.yaml")
    small.write_yaml(file)
    damaged = small.output / "logits/log_odds/c/0/0/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    where = ["--cache", str(small.output)] if command == ["inspect"] else ["--config", str(file)]
    assert main([*command, *where]) == USER_MISTAKE
    assert "logits/log_odds/c/0/0/0/0 differs from its checksum" in " ".join(capsys.readouterr().err.split())


def test_draws_that_were_changed_show_as_differing_codes(
    capture_settings: CaptureSettings, changed: Callable[..., CaptureSettings]
) -> None:
    encoding = {"kind": "hybrid", "k": 4, "draws": 6}
    settings = changed(capture_settings, logits=encoding)
    capture(settings)
    found = verify(VerifySettings.model_validate(settings.as_plain()))
    assert set(found["differing_codes"].values()) == {0.0}


def test_parts_and_the_whole_are_not_captured_at_once(settings: CaptureSettings) -> None:
    part = settings.output.with_name(f"{settings.output.name}.part-1-of-2")
    with sole_writer(part), pytest.raises(UserError, match=r"part-1-of-2 is being written by process \d+ on"):
        capture(settings)
    capture(settings)
