"""An output that is a link to a folder on another disk: every stage writes into that folder, and the link stays."""

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.eval.measure import Measurement, measure
from palenka.eval.suite import Conditions
from palenka.ground.errors import UserError
from palenka.ground.files import whole_directory, write_whole
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture(params=["folder", "disk"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Another folder, or another disk (a tmpfs)."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    if request.param == "folder":
        yield place
        return
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False).returncode
    ):
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_every_stage_writes_through_a_link(
    elsewhere: Path,
    capture_settings: CaptureSettings,
    corpus_directory: Path,
    student_of_text: MakeSettings,
    tmp_path: Path,
) -> None:
    def link(name: str) -> Path:
        (elsewhere / name).mkdir()
        (tmp_path / name).symlink_to(elsewhere / name)
        return tmp_path / name

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.train").write_text("a few words of text\n" * 200)
    prepare(CorpusSettings(sources=tmp_path / "text", output=link("corpus"), vocabulary_size=260))
    captured = capture_settings.model_copy(update={"output": link("linked-cache")})
    capture(captured)
    capture(captured)
    teachers = {"t": {"cache": captured.output}}
    settings = student_of_text(output=link("run"), fraction=0.05, teachers=teachers, objective={"logit": 0.5})
    result = train(settings)
    assert train(settings) == result
    asked = Measurement(settings.output, {"held_out": corpus_directory}, Conditions(length=16, windows=8))
    measured = measure(asked, link("measures") / "x.json")
    assert measure(asked, tmp_path / "measures" / "x.json") == measured
    for name in ("corpus", "linked-cache", "run", "measures"):
        assert (tmp_path / name).is_symlink()
        assert any((elsewhere / name).iterdir())
    assert {path.name for path in elsewhere.iterdir()} == {"corpus", "linked-cache", "run", "measures"}


def test_a_file_that_is_a_link_is_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "far" / "file.json")
    write_whole(tmp_path / "link.json", "x")
    assert (tmp_path / "far" / "file.json").read_text() == "x"
    assert (tmp_path / "link.json").is_symlink()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="File exists|symbolic links"):
        write_whole(tmp_path / "loop" / "x", "x")


def test_a_place_that_cannot_be_taken_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place, why in ((Path("/proc"), "the root of a disk"), (Path(), "the folder that this command runs in")):
        with pytest.raises(UserError, match=why), whole_directory(place):
            raise AssertionError("it began")
    assert not list(tmp_path.iterdir())


def test_what_is_written_follows_the_umask(
    capture_settings: CaptureSettings, student_of_text: MakeSettings, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.train").write_text("a few words of text\n" * 200)
    before = os.umask(0o007)
    try:
        prepare(CorpusSettings(sources=text, output=tmp_path / "corpus", vocabulary_size=260))
        capture(capture_settings)
        train(student_of_text(fraction=0.05, checkpoint_every=5))
        asked = Measurement(tmp_path / "run", {"held_out": capture_settings.corpus}, Conditions(length=16, windows=8))
        measure(asked, tmp_path / "measures" / "x.json")
    finally:
        os.umask(before)
    for name in ("corpus", "cache", "run", "measures"):
        for path in (tmp_path / name).rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o777 == (0o770 if path.is_dir() else 0o660), f"{path} has {mode:o}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_cache_that_another_user_owns_is_read_and_trained_on(
    cache_directory: Path, capture_settings: CaptureSettings, student_of_cache: MakeSettings, tmp_path: Path
) -> None:
    for path in (cache_directory, *cache_directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    mine = tmp_path / "mine"
    mine.mkdir()
    for folder in {*cache_directory.parents, *capture_settings.corpus.parents}:
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    shutil.chown(mine, 1234)
    run = student_of_cache(output=mine / "run", fraction=0.05, objective={"logit": 0.5})
    # Once before, since the interpreter's files may be closed to others: all that is imported is there then.
    train(run.model_copy(update={"output": tmp_path / "before"}))
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setuid(1234)
        with contextlib.suppress(BaseException):
            train(run)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (mine / "run" / "result.json").is_file()
