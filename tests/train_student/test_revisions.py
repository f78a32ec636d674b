"""Words that a run reads, and the models that it keeps on its way: where they are, that they survive, their seals."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from palenka.data.corpus import Corpus
from palenka.data.model_files import load_model
from palenka.data.signals.stream import ReadingOrder
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError
from palenka.train_student.revisions import MILLION, Revisions, planned_revisions
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train
from palenka.train_student.words import words_after_steps

Contents = Callable[[Path], dict[str, bytes]]
Interrupted = Callable[..., TrainSettings]


@pytest.fixture
def settings(student_of_text: Callable[..., TrainSettings]) -> TrainSettings:
    """Two epochs of 14 steps, of some 70 words each."""
    return student_of_text(
        windows={"length": 16, "views": 2},
        fraction=0.1,
        epochs=2,
        global_batch=8,
        optimizer={"learning_rate": 1e-2},
        validation={"windows": 8},
        checkpoint_every=3,
        revisions=[100, 101, 500, 1900],
    )


def words_read(corpus: Corpus, settings: TrainSettings, num_steps: int) -> list[float]:
    """Token by token: each has an equal part of its document's words."""
    order = ReadingOrder(
        settings.windows, len(corpus.tokens), settings.seed, settings.epochs, settings.fraction, settings.global_batch
    )
    ends = [*corpus.document_starts[1:], len(corpus.tokens)]
    share = [
        Fraction(int(words), int(end - start))
        for start, end, words in zip(corpus.document_starts, ends, corpus.document_words, strict=True)
        for _ in range(end - start)
    ]
    after = [Fraction(0)]
    for step in range(num_steps):
        after.append(after[-1])
        for view, _, indices in order.pieces(step * settings.global_batch, (step + 1) * settings.global_batch):
            for index in indices:
                start, stop = settings.windows.span(view, int(index))
                after[-1] += sum(share[start:stop])
    return [float(words) for words in after]


def test_the_first_model_that_has_read_so_many_words_is_kept_with_its_tokenizer(
    settings: TrainSettings, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(settings)
    after = words_read(corpus, settings, result.steps)
    assert result.words.read == round(after[-1])
    assert (result.words.corpus, result.words.corpus_words) == (corpus.fingerprint, corpus.counts.words)
    assert f"{result.words.read:,} words read" in " ".join(capsys.readouterr().err.split())
    kept = Revisions(settings.output).read()
    assert [revision.name for revision in kept] == ["chck_100", "chck_101", "chck_500", "chck_1900"]
    for revision, number in zip(kept, (100, 101, 500, 1900), strict=True):
        assert after[revision.step - 1] < number <= after[revision.step]
        assert revision.words == round(after[revision.step])
    # As a run of so many steps ends: the same numbers are in its last checkpoint.
    last = sorted((settings.output / "checkpoints").iterdir())[-1]
    at_end = settings.model_copy(update={"output": settings.output.with_name("again"), "revisions": (int(after[27]),)})
    assert int(last.name.removeprefix("step-")) == 27
    train(at_end)
    place = at_end.output / "revisions" / f"chck_{int(after[27])}"
    checkpoint = load_file(at_end.output / "checkpoints" / last.name / "objective.safetensors")
    weights = load_file(place / "model.safetensors")
    assert all(torch.equal(checkpoint[f"student.{name}"], weight) for name, weight in weights.items())
    assert load_model(place, torch.device("cpu")).num_parameters() == result.parameters
    for path in (settings.corpus / "tokenizer").iterdir():
        assert (place / path.name).read_bytes() == path.read_bytes()


def test_words_do_not_depend_on_how_steps_are_counted_together(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    order = ReadingOrder(WindowRule(length=16, views=2), len(corpus.tokens), 3, 3, 0.4, batch=4)
    whole = words_after_steps(corpus, order, 4, len(order) // 4)
    monkeypatch.setattr("palenka.train_student.words._STEPS_AT_ONCE", 7)
    assert words_after_steps(corpus, order, 4, len(order) // 4) == pytest.approx(whole, rel=1e-12)
    whole_epoch = ReadingOrder(WindowRule(length=1 + 1), len(corpus.tokens), 0, 1)
    read = words_after_steps(corpus, whole_epoch, 1, len(whole_epoch))[-1]
    assert read == pytest.approx(corpus.counts.words, abs=1)  # a last odd token is in no window


def test_a_run_that_goes_on_keeps_its_revisions_and_makes_later_ones_again(
    settings: TrainSettings, interrupted: Interrupted, contents: Contents
) -> None:
    train(settings)
    whole = contents(settings.output / "revisions")
    for step in (27, 24, 0):
        again = interrupted(settings, f"from-{step}", step)
        kept = [again.output / "revisions" / each.name for each in Revisions(again.output).read() if each.step > step]
        for place in kept:  # as another machine may have left them
            (place / "model.safetensors").write_bytes(b"of steps that are done again")
        train(again)
        assert contents(again.output / "revisions") == whole
    place = interrupted(settings, "damaged", 24).output / "revisions" / "chck_500"
    (place / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"revision .*chck_500 is damaged: model\.safetensors has 7 bytes"):
        train(settings.model_copy(update={"output": place.parents[1]}))


def test_revisions_are_sealed_with_the_run(settings: TrainSettings) -> None:
    train(settings)
    record = json.loads((settings.output / "result.json").read_text())
    assert "revisions/chck_500/model.commit.json" in record["files"]
    Run(settings.output).require_whole()
    tokenizer = settings.output / "revisions" / "chck_100" / "tokenizer.json"
    whole = tokenizer.read_bytes()
    tokenizer.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"chck_100 is damaged: tokenizer\.json has"):
        train(settings)
    tokenizer.write_bytes(whole)
    shutil.copytree(
        settings.output / "revisions" / "chck_100", settings.output / "revisions" / "chck_500", dirs_exist_ok=True
    )
    with pytest.raises(UserError, match=r"is damaged: revisions/chck_500/model\.commit\.json"):
        Run(settings.output).require_whole()


def test_the_revisions_of_the_tracks() -> None:
    def names(*words_after: float) -> dict[str, int]:
        planned = planned_revisions("babylm", np.array(words_after) * MILLION)
        return {each.name: each.step for revisions in planned.values() for each in revisions}

    small = names(*np.linspace(0, 101, 203))
    assert list(small) == [f"chck_{n}M" for n in (*range(1, 10), *range(10, 101, 10))]
    assert (small["chck_1M"], small["chck_7M"], small["chck_100M"]) == (2, 14, 200)
    # The last one is the end of a run whose text has a few words less than its track allows.
    assert names(*np.linspace(0, 98.5, 198))["chck_100M"] == 197
    assert "chck_100M" not in names(*np.linspace(0, 94.9, 191))
    large = list(names(*np.linspace(0, 990, 991)))
    assert large[17:] == ["chck_90M", *(f"chck_{n}00M" for n in range(1, 11))]
    assert names(0, 2.5, 12) == {"chck_1M": 1, "chck_2M": 1, **{f"chck_{n}M": 2 for n in range(3, 11)}}
    assert names(0, 0.5) == {}


def test_a_student_knows_what_its_teachers_have_read(
    settings: TrainSettings, changed: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    teacher = settings.model_copy(update={"output": tmp_path / "teacher", "revisions": ()})
    taught = train(teacher).words
    student_settings = changed(
        teacher,
        output=tmp_path / "student",
        model={"from": teacher.output},
        teachers={"llama": {"source": "live", "model": teacher.output}},
        objective={"logit": 1.0},
    )
    student = train(student_settings)
    assert student.learnt_from == {"from": taught, "llama": taught}
    shutil.copytree(teacher.output, tmp_path / "bare", ignore=shutil.ignore_patterns("result.json"))
    pair = {"source": "live", "ensemble": {"a": tmp_path / "student", "b": tmp_path / "bare"}}
    grand = changed(student_settings, output=tmp_path / "grand", model=settings.model, teachers={"pair": pair})
    assert train(grand).learnt_from == {
        "pair/a": student.words,
        "pair/a/from": taught,
        "pair/a/llama": taught,
        "pair/b": None,
    }


def test_words_that_do_not_ascend_are_refused(settings_of_run: Callable[..., TrainSettings]) -> None:
    with pytest.raises(ValueError, match=r"revisions is \[200, 100\], but should be numbers of words in ascending"):
        settings_of_run(revisions=[200, 100])


@pytest.mark.parametrize(("asked", "told"), [("babylm", "chck_1M"), ((500, 10**6, 700_001), "chck_1M, chck_700001")])
def test_revisions_that_a_run_ends_before_are_named(
    asked: object, told: str, settings: TrainSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings.model_copy(update={"revisions": asked}))
    assert f" words: revision(s) {told}\n" in capsys.readouterr().err
