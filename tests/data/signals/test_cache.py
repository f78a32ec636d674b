"""The teacher cache on disk: what is read is what was written, or it is refused by name."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM
from zarr.codecs import BloscCodec

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import SINGLE, CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.cache_writer import CacheWriter, create_cache, is_begun
from palenka.data.signals.chunks import ArrayChunks
from palenka.data.signals.encodings import LowRankEncoding, SampledEncoding, TopKEncoding
from palenka.data.signals.hidden import ComponentsEncoding, HiddenLayers
from palenka.data.signals.low_rank import LowRankOthers
from palenka.data.signals.manifest import CacheManifest, Shard, TeacherIdentity, blosc_of, windows_per_shard
from palenka.data.signals.store import Measured, chunk_windows, damage_of_shard, read_manifest
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


@pytest.mark.parametrize(("windows", "fraction"), [(2, 0.03), (64, 0.3), (128, 0.3)])
def test_chunks_are_what_zarr_reads(
    windows: int,
    fraction: float,
    hidden_capture: CaptureSettings,
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[..., CaptureSettings],
) -> None:
    monkeypatch.setattr("palenka.data.signals.manifest.LARGEST_SHARD_WINDOWS", windows)
    hidden = {"positions": 5, "sample_windows": 40, "components": 8}
    changes = {"logits": {"kind": "low_rank", "k": 4, "rank": 6}, "hidden": hidden, "fraction": fraction}
    capture(changed(hidden_capture, **changes))
    cache = TeacherCache(hidden_capture.output, read_manifest(hidden_capture.output).hidden_keys())
    group = zarr.open_group(hidden_capture.output, mode="r")
    assert len(cache.committed()) > 1
    captured = cache.committed()[-1].stop
    slots = np.random.RandomState(0).permutation(captured).astype(np.int64)
    for chosen in (slots, slots[:7], np.sort(slots), slots[:0]):
        found = cache.codes(0, chosen)
        assert found.keys() == cache.manifest.arrays().keys()
        for name, values in found.items():
            stored = group[name]
            assert isinstance(stored, zarr.Array)
            expected = np.asarray(stored[0, :captured])[chosen]
            assert values.dtype == expected.dtype
            assert np.array_equal(values, expected)


def test_many_threads_read_what_one_reads(cache_directory: Path) -> None:
    alone, shared = TeacherCache(cache_directory), TeacherCache(cache_directory)
    slots = np.arange(alone.manifest.num_windows(0), dtype=np.int64)
    parts = np.array_split(np.random.RandomState(0).permutation(slots), 40)
    with ThreadPoolExecutor(8) as threads:
        for found, part in zip(threads.map(lambda part: shared.codes(0, part), parts), parts, strict=True):
            expected = alone.codes(0, part)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_reader_checks_the_files_that_it_reads_and_no_others(hidden_capture: CaptureSettings) -> None:
    capture(hidden_capture)
    for path in hidden_capture.output.glob("hidden/teacher/1/codes/c/0/*/0/0"):
        path.write_bytes(b"damaged")
    slots = np.arange(10, dtype=np.int64)
    TeacherCache(hidden_capture.output).read(0, slots)
    TeacherCache(hidden_capture.output, ["teacher/0", "teacher/2"]).read(0, slots)
    with pytest.raises(UserError, match="hidden/teacher/1/codes/c/0/0/0/0 has 7 bytes where"):
        TeacherCache(hidden_capture.output, ["teacher/1"]).read(0, slots)


def test_a_file_that_goes_after_it_was_checked_is_named(cache_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TeacherCache(cache_directory)
    check = cache._check

    def check_and_lose(shard: Shard) -> None:
        check(shard)
        (cache_directory / shard.file_of("logits/ids")).unlink()

    monkeypatch.setattr(cache, "_check", check_and_lose)
    with pytest.raises(UserError, match="changed while shard 0 of view 0 was read: .*logits/ids/.* is missing"):
        cache.read(0, 0)


@pytest.mark.parametrize("kind", ["topk", "low_rank"])
def test_less_is_read_than_was_kept(
    kind: str, capture_settings: CaptureSettings, changed: Callable[..., CaptureSettings]
) -> None:
    rank = {"rank": 8, "codes": "float32"} if kind == "low_rank" else {}
    logits = {"kind": kind, "k": 8, "values": "float32", **rank}
    capture(changed(capture_settings, logits=logits))
    whole = TeacherCache(capture_settings.output)
    fewer = whole.manifest.logits.reading(3, 2 if rank else None, "the cache")
    slots = np.arange(20, dtype=np.int64)
    for temperature in (1.0, 2.0):
        all_kept = whole.read(0, slots).at(temperature)
        found = TeacherCache(capture_settings.output, read_as=fewer).read(0, slots).at(temperature)
        assert found.ids is not None
        assert found.ids.shape[-1] == 3
        assert (found.ids.diff(dim=-1) > 0).all()
        # The three most probable with their probabilities, and the exact mass of all others.
        largest = all_kept.log_kept.double().sort(dim=-1, descending=True).values[..., :3]
        torch.testing.assert_close(found.log_kept.double().sort(dim=-1, descending=True).values, largest)
        torch.testing.assert_close(found.log_tail.double().exp(), 1 - largest.exp().sum(-1), rtol=1e-4, atol=1e-6)
        if rank:
            size = whole.manifest.vocabulary_size
            torch.testing.assert_close(found.log_probabilities(size).exp().sum(-1), torch.ones(found.log_tail.shape))
            assert found.others is not None
            assert isinstance(all_kept.others, LowRankOthers)
            statics = whole.measured.statics
            exact = statics["centre"] / temperature + all_kept.others.codes[..., :2] @ statics["basis"][:, :2].T
            torch.testing.assert_close(found.others.logits(), exact, rtol=1e-4, atol=1e-4)


def test_more_than_was_kept_is_not_read() -> None:
    encoding = LowRankEncoding(k=8, rank=16)
    assert encoding.reading(None, None, "cache c") == encoding
    with pytest.raises(UserError, match="cache c holds k 8, but 9 is to be read; choose 8 at most"):
        encoding.reading(9, None, "cache c")
    with pytest.raises(UserError, match="cache c holds rank 16, but 17 is to be read; choose 16 at most"):
        encoding.reading(None, 17, "cache c")
    with pytest.raises(UserError, match=r"cache c holds topk logits, of which no smaller rank \(2\) is read"):
        TopKEncoding().reading(None, 2, "cache c")
    with pytest.raises(UserError, match=r"cache c holds sampled logits, of which no smaller k \(2\) is read"):
        SampledEncoding().reading(2, None, "cache c")


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


def test_a_layer_that_is_not_kept_is_refused(hidden_capture: CaptureSettings) -> None:
    capture(hidden_capture)
    with pytest.raises(UserError, match="teacher/7 are not in the cache; choose from teacher/0, teacher/1"):
        TeacherCache(hidden_capture.output, ["teacher/1", "teacher/7"])


@pytest.mark.parametrize(
    ("hidden", "logits"), [((), True), (("teacher/1",), True), (("teacher/2", "teacher/0"), False)]
)
def test_what_is_read_is_fixed_when_a_cache_is_opened(
    capture_settings: CaptureSettings, hidden: tuple[str, ...], logits: bool, changed: Callable[..., CaptureSettings]
) -> None:
    capture(changed(capture_settings, hidden={"positions": 4, "sample_windows": 40}, fraction=0.5))
    cache = TeacherCache(capture_settings.output, hidden, logits=logits)
    # Layers that others are predicted from are read with them.
    layers = [f"teacher/{layer}" for layer in range(1 + max((int(key[-1]) for key in hidden), default=-1))]
    names = {f"hidden/{key}/codes" for key in layers} | (
        {"logits/ids", "logits/values", "logits/log_odds"} if logits else set()
    )
    assert cache.measured.layers.keys() == set(layers)
    assert cache.read(0, [0]).hidden.keys() == set(hidden)
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


def test_metadata_have_the_block_size_that_shards_are_compressed_with(tmp_path: Path) -> None:
    manifest = manifest_of(
        windows=WindowRule(length=128),
        logits=LowRankEncoding(k=8, rank=32),
        hidden=ComponentsEncoding(positions=112),
        hidden_layers={"teacher": HiddenLayers(depth=2, width=128, layers=(0, 2))},
    )
    create_cache(tmp_path / "cache", manifest, Measured())
    group = zarr.open_group(tmp_path / "cache", mode="r")
    sizes = set()
    for name, stored in manifest.arrays().items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        blosc = array.compressors[0]
        assert isinstance(blosc, BloscCodec)
        assert blosc.blocksize == blosc_of(stored.row, stored.empty(chunk_windows(manifest)).size).blocksize
        sizes.add(blosc.blocksize)
    assert sizes == {2**14, 2 * 64 * 112, 2**20}  # columns of codes, columns of hidden states, whole chunks


@pytest.mark.parametrize("name", ["logits/codes", "logits/ids", "hidden/teacher/2/codes"])
def test_columns_are_compressed_in_the_blocks_of_zarr(name: str, tmp_path: Path) -> None:
    manifest = manifest_of(
        windows=WindowRule(length=128),
        logits=LowRankEncoding(k=8, rank=32),
        hidden=ComponentsEncoding(positions=112),
        hidden_layers={"teacher": HiddenLayers(depth=2, width=128, layers=(0, 2))},
        windows_per_shard=64,
    )
    create_cache(tmp_path / "cache", manifest, Measured())
    chunks, shard = ArrayChunks.of(tmp_path / "cache", manifest, name), next(manifest.shards())
    stored = manifest.arrays()[name]
    numbers = np.random.RandomState(0).standard_normal((64, stored.rows, stored.row.width))
    values = numbers.round().astype(stored.row.dtype)
    chunks.write(shard, [chunk.result() for chunk in chunks.compress(values)])
    file = tmp_path / "cache" / shard.file_of(name)
    ours = file.read_bytes()
    file.unlink()
    array = zarr.open_group(tmp_path / "cache", mode="r+")[name]
    assert isinstance(array, zarr.Array)
    array[0, : len(values)] = values
    assert file.read_bytes() == ours


@pytest.mark.parametrize("view", [-1, 1])
def test_a_view_that_does_not_exist_is_named(cache_directory: Path, view: int) -> None:
    with pytest.raises(UserError, match=rf"view is {view}, but teacher cache .* has 1, counted from 0"):
        TeacherCache(cache_directory).read(view, 0)


def test_a_shard_of_zeros_is_written_and_read(cache_directory: Path) -> None:
    manifest = TeacherCache(cache_directory).manifest
    writer = CacheWriter(cache_directory, manifest)
    shard = next(manifest.shards())
    writer.write(shard, writer.room_for(shard), {})
    assert damage_of_shard(cache_directory, shard) is None
    codes = TeacherCache(cache_directory).codes(shard.view, np.arange(shard.start, shard.stop))
    assert not any(part.any() for part in codes.values())


@pytest.mark.parametrize("windows", [64, 128])
def test_shards_are_the_bytes_that_zarr_writes(
    windows: int,
    hidden_capture: CaptureSettings,
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[..., CaptureSettings],
) -> None:
    monkeypatch.setattr("palenka.data.signals.manifest.LARGEST_SHARD_WINDOWS", windows)
    hidden = {"positions": 5, "sample_windows": 40, "components": 8}
    changes = {"logits": {"kind": "low_rank", "k": 4, "rank": 6}, "hidden": hidden}
    capture(changed(hidden_capture, **changes))
    manifest = read_manifest(hidden_capture.output)
    group = zarr.open_group(hidden_capture.output, mode="r+")
    *_, last = manifest.shards()
    assert (last.stop - last.start) % chunk_windows(manifest)  # a chunk that the view ends in
    for name in manifest.arrays():
        file, array = hidden_capture.output / last.file_of(name), group[name]
        assert isinstance(array, zarr.Array)
        ours, values = file.read_bytes(), np.asarray(array[last.view, last.start : last.stop])
        file.unlink()
        array.with_config({"write_empty_chunks": True})[last.view, last.start : last.stop] = values
        assert file.read_bytes() == ours
