"""Nothing of a cache can be swapped: files and records from elsewhere, and files that go while they are read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings, VerifySettings
from palenka.cache_teachers.verify import verify
from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import damage_of_shard, read_manifest
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError


def files_of(cache: Path, shard: int) -> list[Path]:
    return sorted(path for path in cache.rglob(f"c/0/{shard}/0/0") if path.is_file())


def everything(cache: TeacherCache) -> np.ndarray:
    return np.arange(cache.manifest.num_windows(0), dtype=np.int64)


def test_a_copied_record_makes_no_missing_shard_whole(cache_directory: Path, capture_settings: CaptureSettings) -> None:
    for path in files_of(cache_directory, 1):
        path.unlink()
    shutil.copyfile(cache_directory / "commits/0-0.json", cache_directory / "commits/0-1.json")
    cache = TeacherCache(cache_directory)
    shards = list(cache.manifest.shards())
    assert damage_of_shard(cache_directory, shards[0]) is None
    assert "commits/0-1.json is of another shard: [0, 0], not [0, 1]" in str(
        damage_of_shard(cache_directory, shards[1])
    )
    cache.require_shards(shards)  # a look at their names; what they say is compared when they are read
    with pytest.raises(UserError, match="is of another shard"):
        cache.read(0, everything(cache))
    found = verify(VerifySettings.model_validate(capture_settings.as_plain() | {"all": True}))
    assert list(found["damaged"]) == ["commits/0-1.json"]


def test_a_shard_of_another_teachers_cache_is_refused_and_captured_again(
    cache_directory: Path,
    capture_settings: CaptureSettings,
    make_teacher: Callable[..., Path],
    tmp_path: Path,
    settings_of_capture: Callable[..., CaptureSettings],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    whole = contents(cache_directory)
    capture(settings_of_capture(teacher=make_teacher("llama", seed=9), output=tmp_path / "o"))
    for path in [*files_of(tmp_path / "o", 1), tmp_path / "o" / "commits/0-1.json"]:
        shutil.copyfile(path, cache_directory / path.relative_to(tmp_path / "o"))
    cache = TeacherCache(cache_directory)
    with pytest.raises(UserError, match=r"commits/0-1.json is of another store: '\w{64}', not '\w{64}'"):
        cache.read(0, everything(cache))
    capture(capture_settings)
    assert contents(cache_directory) == whole


def test_a_shard_that_is_deleted_after_its_first_read_is_not_read_as_zeros(cache_directory: Path) -> None:
    cache = TeacherCache(cache_directory)
    slots = everything(cache)
    cache.read(0, slots[:10])
    for path in files_of(cache_directory, 0):
        path.unlink()
    with pytest.raises(UserError, match="is missing"):
        cache.read(0, slots[100:110])


def test_a_shard_that_is_replaced_after_its_first_read_is_checked_again(cache_directory: Path) -> None:
    cache = TeacherCache(cache_directory)
    slots = everything(cache)
    cache.read(0, slots[:10])
    (values,) = [path for path in files_of(cache_directory, 0) if "values" in path.parts]
    content = bytearray(values.read_bytes())
    content[len(content) // 2] ^= 1
    values.with_suffix(".new").write_bytes(content)
    values.with_suffix(".new").replace(values)
    with pytest.raises(UserError, match="differs from its checksum"):
        cache.read(0, slots[100:110])


def test_the_identity_is_of_the_weights_that_are_loaded(make_teacher: Callable[..., Path]) -> None:
    teacher, other = make_teacher("llama", seed=1), make_teacher("llama", seed=2)
    first = identity_of(teacher, "float32").weights
    shutil.copyfile(teacher / "model.safetensors", teacher / "model_backup.safetensors")
    assert identity_of(teacher, "float32").weights == first
    shutil.copyfile(other / "model.safetensors", teacher / "model.safetensors")
    assert identity_of(teacher, "float32").weights == identity_of(other, "float32").weights != first
    (teacher / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="would change the model when it is loaded"):
        identity_of(teacher, "float32")


def test_a_split_of_a_corpus_is_not_called_a_damaged_cache(corpus_directory: Path) -> None:
    with pytest.raises(UserError, match=r"train\.zarr is a split of a corpus, not a teacher cache") as refusal:
        TeacherCache(corpus_directory / "train.zarr")
    assert "delete" not in str(refusal.value)


def test_tokens_that_change_while_they_are_read_are_refused(corpus_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus_directory, tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus", "train")
    indices = np.arange(3)
    before = corpus.gather(WindowRule(length=16), 0, indices)
    path = tmp_path / "corpus" / "train.zarr" / "tokens" / "c" / "0"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(UserError, match="was changed while it was read"):
        corpus.gather(WindowRule(length=16), 0, indices)
    assert before.shape == (3, 16)


@pytest.mark.usefixtures("cache_directory")
def test_another_teacher_is_not_blamed_on_the_cache(
    capture_settings: CaptureSettings, make_teacher: Callable[..., Path]
) -> None:
    other = capture_settings.model_copy(update={"teacher": make_teacher("llama", seed=5)})
    with pytest.raises(
        UserError, match="the teacher is another one, or was changed since: restore it, or choose"
    ) as no:
        capture(other)
    assert "delete" not in str(no.value)


def test_statics_that_change_while_a_cache_is_opened_are_refused(
    cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(cache_directory)
    record = cache_directory / "commits" / "store.json"
    # After the manifest was checked, and before the statics are read.
    monkeypatch.setattr("palenka.data.signals.cache.read_manifest", lambda _: manifest)
    record.write_text(record.read_text().replace('"bytes": ', '"bytes": 1'))
    with pytest.raises(UserError, match="was changed while it was read"):
        TeacherCache(cache_directory)


def _cut(array: Path) -> None:
    """Cut the only chunk of an array short: its codec cannot decode it."""
    (chunk,) = (path for path in (array / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])


@pytest.mark.parametrize("change", [_cut, shutil.rmtree, lambda array: (array / "zarr.json").write_text("{")])
def test_statics_that_are_damaged_while_a_cache_is_opened_are_refused(
    change: Callable[[Path], object], hidden_capture: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(hidden_capture)
    manifest = read_manifest(hidden_capture.output)
    monkeypatch.setattr("palenka.data.signals.cache.read_manifest", lambda _: manifest)
    change(hidden_capture.output / "hidden" / "teacher" / "1" / "mean")
    with pytest.raises(UserError, match="was changed while it was read"):
        TeacherCache(hidden_capture.output, ["teacher/1"])
