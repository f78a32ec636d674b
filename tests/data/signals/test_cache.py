"""The teacher cache on disk: what is read is what was written, or it is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import SINGLE, CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.cache_writer import CacheWriter, create_cache, is_begun
from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.manifest import CacheManifest, TeacherIdentity, windows_per_shard
from palenka.data.signals.store import Measured, damage_of_shard, read_manifest
from palenka.data.windows import WindowRule, gather
from palenka.ground.errors import UserError
from palenka.ground.records import commit

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
        "logits": TopKEncoding(k=8),
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
    manifest = manifest_of(
        windows=WindowRule(length=128), vocabulary_size=16_000, logits=TopKEncoding(k=k, values="float32")
    )
    size = sum(array.bytes_per_window for array in manifest.arrays().values())
    # Ids of two bytes unless all are kept, values, and the tail at two temperatures.
    assert size == 128 * (k * 4 + 2 * 4 + (k * 2 if k < 16_000 else 0))
    windows = windows_per_shard(size)
    assert 1 <= windows <= 1024
    assert windows == 1 or windows * size <= 64 * 2**20


def test_manifest_survives_the_store(tmp_path: Path) -> None:
    create_cache(tmp_path / "cache", manifest_of(), Measured())
    assert read_manifest(tmp_path / "cache") == manifest_of()


@pytest.mark.parametrize(
    ("changes", "field", "both"),
    [
        ({"corpus": "decaf"}, "corpus", ("c0ffee", "decaf")),
        ({"tokenizer": "0ther"}, "tokenizer", ("70ced", "0ther")),
        ({"windows": WindowRule(length=32, views=2)}, "windows.length", ("16", "32")),
        ({"logits": TopKEncoding(k=9)}, "logits.k", ("8", "9")),
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
    create_cache(tmp_path / "cache", manifest_of(), Measured())
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
        update={"windows": WindowRule(length=16, views=2), "logits": TopKEncoding(k=8, values="float32")}
    )
    capture(settings)
    cache = TeacherCache(settings.output)
    live = AutoModelForCausalLM.from_pretrained(settings.models()[SINGLE])
    rule = cache.manifest.windows
    for view in range(2):
        slots = np.random.RandomState(view).permutation(rule.count(len(corpus.tokens), view))[:90].astype(np.int64)
        tokens = gather(corpus.tokens, rule, view, rule.slots(len(corpus.tokens), view)[slots])
        with torch.inference_mode():
            log_probabilities = live(input_ids=torch.from_numpy(tokens)).logits.log_softmax(-1)
        kept = cache.read(view, slots).at(1.0)
        assert kept.ids is not None
        torch.testing.assert_close(kept.log_kept, log_probabilities.gather(-1, kept.ids), rtol=0, atol=1e-5)
        assert (kept.log_kept.amin(-1) >= log_probabilities.scatter(-1, kept.ids, -1e9).amax(-1) - 1e-5).all()


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
    kept = cache.read(0, slots).at(1.0).ids
    assert kept is not None
    assert np.array_equal(np.asarray(ids[0, :10]), kept.numpy())
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
    group.attrs["format_version"] = 1
    commit(cache_directory, "commits/store.json", json.loads(record.read_text())["files"])
    with pytest.raises(UserError, match="format_version is 1"):
        TeacherCache(cache_directory)


def test_kept_mass_and_size_are_those_of_the_store(cache_directory: Path) -> None:
    cache = TeacherCache(cache_directory)
    tokens = cache.manifest.num_windows(0) * 16
    assert sum(cache.bytes_per_token().values()) == pytest.approx(
        sum(path.stat().st_size for path in shard_files(cache_directory)) / tokens
    )
    signal = cache.read(0, np.arange(cache.manifest.num_windows(0), dtype=np.int64))
    for temperature, mass in cache.kept_mass().items():
        kept = signal.at(temperature).log_kept
        assert mass == pytest.approx(kept.double().exp().sum(-1).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("hidden", "logits"), [((), True), (("teacher/1",), True), (("teacher/2", "teacher/0"), False)]
)
def test_what_is_read_is_fixed_when_a_cache_is_opened(
    capture_settings: CaptureSettings, hidden: tuple[str, ...], logits: bool
) -> None:
    more = {"hidden": {"positions": 4, "sample_windows": 40}, "fraction": 0.5}
    capture(CaptureSettings.model_validate(capture_settings.as_plain() | more))
    cache = TeacherCache(capture_settings.output, hidden, logits=logits)
    names = {f"hidden/{key}/codes" for key in hidden} | (
        {"logits/ids", "logits/values", "logits/log_odds"} if logits else set()
    )
    assert cache.measured.layers.keys() == set(hidden)
    group = zarr.open_group(capture_settings.output, mode="r")
    # Chunks that were read before, chunks that were not, and what another reader of the same files does meanwhile.
    for start, stop in ((0, 50), (10, 200), (0, 256), (100, 130)):
        slots = np.random.RandomState(start).permutation(np.arange(start, stop))
        TeacherCache(capture_settings.output, cache.manifest.hidden_keys()).read(0, slots)
        codes = cache.codes(0, slots)
        assert codes.keys() == names
        for name, values in codes.items():
            stored = group[name]
            assert isinstance(stored, zarr.Array)
            assert np.array_equal(values, np.asarray(stored[0, :stop])[slots])
        signal = cache.read(0, slots)
        assert signal.hidden.keys() == set(hidden)
        assert {f"logits/{name}" for name in signal.arrays} == {name for name in names if name.startswith("logits")}


def test_a_shard_of_zeros_is_written_and_read(cache_directory: Path) -> None:
    manifest = TeacherCache(cache_directory).manifest
    writer = CacheWriter(cache_directory, manifest)
    shard = next(manifest.shards())
    writer.write(shard, writer.empty(shard), {})
    assert damage_of_shard(cache_directory, shard) is None
    codes = TeacherCache(cache_directory).codes(shard.view, np.arange(shard.start, shard.stop))
    assert not any(part.any() for part in codes.values())
