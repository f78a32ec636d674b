"""The teacher cache on disk: what is read is what was written, or it is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.capture import CaptureSettings, capture
from palenka.cache_teachers.teacher import SINGLE
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache, create_cache, is_begun, read_manifest
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.manifest import CacheManifest, TeacherIdentity, windows_per_shard
from palenka.data.windows import WindowRule, gather
from palenka.ground.errors import UserError
from palenka.ground.files import commit

Damage = Callable[[Path], object]


def identity(weights: str) -> TeacherIdentity:
    return TeacherIdentity(weights=weights, config={"hidden_size": 16}, precision="float32")


def manifest_of(**changes: object) -> CacheManifest:
    fields: dict[str, object] = {
        "corpus": "c0ffee",
        "tokenizer": "70ced",
        "num_tokens": 10_000,
        "vocabulary_size": 320,
        "windows": WindowRule(length=16, views=2),
        "teachers": {"teacher": identity("beef")},
        "logits": LogitEncoding(k=8),
        "windows_per_shard": 128,
    }
    return CacheManifest.model_validate(fields | changes)


def shard_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("c/*/*/0/0") if path.is_file())


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_every_shard_covers_its_slots_once() -> None:
    manifest = manifest_of()
    for view in range(2):
        covered = [slot for shard in manifest.shards() if shard.view == view for slot in range(shard.start, shard.stop)]
        assert covered == list(range(manifest.num_windows(view)))


@pytest.mark.parametrize("k", [1, 32, 128, 4096, 16_000])
def test_shards_stay_small_whatever_is_kept(k: int) -> None:
    windows = windows_per_shard(128 * LogitEncoding(k=k, values="float32").bytes_per_token(16_000))
    assert 1 <= windows <= 1024
    assert windows == 1 or windows * 128 * k * 8 <= 64 * 2**20


def test_manifest_survives_the_store(tmp_path: Path) -> None:
    create_cache(tmp_path / "cache", manifest_of(), {})
    assert read_manifest(tmp_path / "cache") == manifest_of()


@pytest.mark.parametrize(
    ("changes", "field", "both"),
    [
        ({"corpus": "decaf"}, "corpus", ("c0ffee", "decaf")),
        ({"tokenizer": "0ther"}, "tokenizer", ("70ced", "0ther")),
        ({"windows": WindowRule(length=32, views=2)}, "windows.length", ("16", "32")),
        ({"logits": LogitEncoding(k=9)}, "logits.k", ("8", "9")),
        (
            {"teachers": {"teacher": identity("f00d")}},
            "teachers.teacher.weights",
            ("beef", "f00d"),
        ),
    ],
)
def test_another_cache_is_not_overwritten(
    tmp_path: Path, changes: dict[str, object], field: str, both: tuple[str, str]
) -> None:
    create_cache(tmp_path / "cache", manifest_of(), {})
    assert is_begun(tmp_path / "cache", manifest_of())
    with pytest.raises(UserError, match=field) as refusal:
        is_begun(tmp_path / "cache", manifest_of(**changes))
    assert all(side in str(refusal.value) for side in both)


def test_a_directory_with_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not a teacher cache"):
        is_begun(tmp_path, manifest_of())
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_any_slots_read_the_signal_of_their_windows(capture_settings: CaptureSettings, corpus: Corpus) -> None:
    settings = capture_settings.model_copy(
        update={"windows": WindowRule(length=16, views=2), "logits": LogitEncoding(k=8, values="float32")}
    )
    capture(settings)
    cache = TeacherCache(settings.output)
    live = AutoModelForCausalLM.from_pretrained(settings.models()[SINGLE])
    rule = cache.manifest.windows
    for view in range(2):
        slots = np.random.RandomState(view).permutation(rule.count(len(corpus.tokens), view))[:90].astype(np.int64)
        tokens = gather(corpus.tokens, rule, view, rule.slots(len(corpus.tokens), view)[slots])
        signal = cache.read(view, slots)
        with torch.inference_mode():
            log_probabilities = live(input_ids=torch.from_numpy(tokens)).logits.log_softmax(-1)
        torch.testing.assert_close(signal.values, log_probabilities.gather(-1, signal.ids), rtol=0, atol=1e-5)
        assert (signal.values.amin(-1) >= log_probabilities.scatter(-1, signal.ids, -1e9).amax(-1) - 1e-5).all()


def test_a_part_of_a_cache_in_small_shards_reads_without_the_shards_after_it(
    monkeypatch: pytest.MonkeyPatch, capture_settings: CaptureSettings
) -> None:
    monkeypatch.setattr("palenka.data.signals.manifest.LARGEST_SHARD_WINDOWS", 16)
    part = capture_settings.model_copy(update={"output": capture_settings.output.with_name("part"), "fraction": 0.15})
    whole = capture_settings.model_copy(update={"output": capture_settings.output.with_name("whole"), "fraction": 0.4})
    for settings in (part, whole):
        capture(settings)
    cache = TeacherCache(part.output)
    slots = np.arange(cache.committed()[-1].stop)
    assert cache.manifest.windows_per_shard == 16
    assert 16 <= len(slots) < TeacherCache(whole.output).committed()[-1].stop
    assert len(slots) % 64
    found, expected = cache.codes(0, slots[::-1]), TeacherCache(whole.output).codes(0, slots[::-1])
    for name, values in found.items():
        assert np.array_equal(values, expected[name])


def test_any_zarr_reader_reads_the_arrays(cache_directory: Path) -> None:
    group = zarr.open_group(cache_directory, mode="r")
    cache = TeacherCache(cache_directory)
    slots = np.arange(10, dtype=np.int64)
    ids = group["logits/ids"]
    assert isinstance(ids, zarr.Array)
    assert np.array_equal(np.asarray(ids[0, :10]).cumsum(-1), cache.read(0, slots).ids.numpy())
    assert group.attrs["corpus"] == cache.manifest.corpus


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_bit, "differs from its checksum"),
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "bytes where"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "differs from its checksum"),
    ],
    ids=["bit flip", "missing", "truncated", "zeros"],
)
def test_a_damaged_shard_is_named_and_never_read(cache_directory: Path, damage: Damage, named: str) -> None:
    for path in shard_files(cache_directory):
        whole = path.read_bytes()
        damage(path)
        cache = TeacherCache(cache_directory)
        name = str(path.relative_to(cache_directory))
        array = name.split("/c/")[0]
        shard = next(shard for shard in cache.manifest.shards() if shard.file_of(array) == name)
        with pytest.raises(UserError, match=named) as refusal:
            cache.read(shard.view, np.arange(shard.start, shard.stop, dtype=np.int64))
        assert name in str(refusal.value)
        path.write_bytes(whole)


def test_a_shard_without_its_commit_record_does_not_count(cache_directory: Path) -> None:
    cache = TeacherCache(cache_directory)
    shard = next(cache.manifest.shards())
    (cache_directory / shard.record).unlink()
    with pytest.raises(UserError, match=f"lacks 1 of the shards needed: {shard.record} is missing"):
        cache.require_shards(cache.manifest.shards())
    with pytest.raises(UserError, match=f"{shard.record} is missing"):
        cache.read(shard.view, np.array([shard.start]))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', "{}", '{"files": {}}', '{"files": {"a": {}}}'])
def test_a_record_that_is_none_is_named(cache_directory: Path, content: str) -> None:
    cache = TeacherCache(cache_directory)
    record = next(cache.manifest.shards()).record
    (cache_directory / record).write_text(content)
    with pytest.raises(UserError, match=record):
        cache.read(0, np.array([0]))


def test_changed_metadata_is_refused(cache_directory: Path) -> None:
    path = cache_directory / "zarr.json"
    path.write_text(path.read_text().replace('"k": 8', '"k": 7'))
    with pytest.raises(UserError, match=r"damaged: zarr.json differs from its checksum"):
        TeacherCache(cache_directory)


def test_another_format_version_is_named(cache_directory: Path) -> None:
    record = cache_directory / "commits" / "store.json"
    group = zarr.open_group(cache_directory, mode="r+")
    group.attrs["format_version"] = 2
    commit(cache_directory, "commits/store.json", json.loads(record.read_text())["files"])
    with pytest.raises(UserError, match="format_version is 2"):
        TeacherCache(cache_directory)


def test_kept_mass_and_size_are_those_of_the_store(cache_directory: Path) -> None:
    cache = TeacherCache(cache_directory)
    tokens = cache.manifest.num_windows(0) * 16
    assert sum(cache.bytes_per_token().values()) == pytest.approx(
        sum(path.stat().st_size for path in shard_files(cache_directory)) / tokens
    )
    signal = cache.read(0, np.arange(cache.manifest.num_windows(0), dtype=np.int64))
    for temperature, mass in cache.kept_mass().items():
        kept, _ = signal.at(temperature)
        assert mass == pytest.approx(kept.double().exp().sum(-1).mean().item(), rel=1e-6)
