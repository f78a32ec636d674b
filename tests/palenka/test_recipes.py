"""Recipes: studies whose files must agree with each other."""

from pathlib import Path

import pytest

from palenka.ground.command_line import parse_file
from palenka.study import Study, StudySettings
from palenka.train_student.model.trained import TrainedModel

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*/study.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_every_student_has_a_control_that_differs_in_the_teacher_alone(file: Path) -> None:
    study = Study(*parse_file(StudySettings, [str(file)], "palenka study"))
    students = {name: run for name, run in study.students.items() if run.teachers}
    assert set(study.students) == {*students, *(f"{name}-control" for name in students)}
    for name, student in students.items():
        control = study.students[f"{name}-control"]
        own = {"output", "teachers", "objective"}
        assert {**student.as_plain(), **dict.fromkeys(own)} == {**control.as_plain(), **dict.fromkeys(own)}
        assert control.weights() == {"hard": 1.0}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_teacher_tokenizer_caches_and_students_are_of_one_kind(file: Path) -> None:
    study = Study(*parse_file(StudySettings, [str(file)], "palenka study"))
    captured = {cache.output: cache for cache in study.caches.values()}
    for cache in study.caches.values():
        assert cache.teacher == study.corpus.tokenizer
        assert cache.corpus == study.corpus.output
        assert cache.hidden is not None
    for run in study.students.values():
        assert run.corpus == study.corpus.output
        for source in run.teachers.values():
            assert source.cache is not None
            cache = captured[source.cache]
            assert source.model == cache.teacher
            assert run.fraction <= cache.fraction
        if isinstance(run.model, TrainedModel):
            assert run.model.from_ == study.corpus.tokenizer
    # Files that no stage names would be left behind.
    assert len(list(file.parent.glob("*.yaml"))) == 2 + len(study.caches) + len(study.students)
