"""The command line: what wins, and what a mistake is told: one sentence on one line, exit status 2."""

import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

import palenka.__main__
import palenka.cache_teachers.__main__
import palenka.data.__main__
import palenka.eval.__main__
import palenka.train_student.__main__
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.text.prepare import CorpusSettings
from palenka.grid.points import Grid
from palenka.grid.settings import GridSettings, PointSettings
from palenka.ground.command_line import INTERRUPTED, USER_MISTAKE, parse, parse_file, run
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.settings import Command
from palenka.study import Study, StudySettings
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.settings import TrainSettings

Main = Callable[[Sequence[str] | None], int]

STUDENT = """
corpus: no/corpus
output: no/output
model: {architecture: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}
epochs: 7
objective: {hard: 0.5, logit: 0.25}
teachers:
  one: {cache: no/cache, weight: 0.9}
  two: {cache: no/other}
"""
PROGRAMS: dict[str, Main] = {
    "palenka": palenka.__main__.main,
    "data": palenka.data.__main__.main,
    "cache_teachers": palenka.cache_teachers.__main__.main,
    "train_student": palenka.train_student.__main__.main,
    "eval": palenka.eval.__main__.main,
}


@pytest.fixture
def student(tmp_path: Path) -> str:
    path = tmp_path / "student.yaml"
    path.write_text(STUDENT)
    return str(path)


def train_settings(*arguments: str) -> TrainSettings:
    return parse(TrainSettings, arguments, "palenka train")


def mistake(main: Main, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a program says to a mistaken command line, after making sure that it is one line and status 2."""
    assert main(arguments) == USER_MISTAKE == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", told.err)
    assert not re.search(r"Traceback|typing\.|<class|pydantic|unicode string", told.err)
    return told.err.removeprefix("error: ").strip()


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(student: str) -> None:
    settings = train_settings("--config", student, "--epochs", "2", "--objective.logit", "0.75")
    assert (settings.epochs, settings.objective.terms["logit"].weight) == (2, 0.75)  # command line
    assert settings.objective.terms["hard"].weight == 0.5  # file: its neighbour in the group stays
    assert settings.objective.temperature == ObjectiveSettings().temperature == 2.0
    assert settings.global_batch == 32  # default


def test_it_wins_wherever_the_file_stands(student: str) -> None:
    assert train_settings("--epochs", "2", "--config", student).epochs == 2
    assert train_settings("--epochs=2", f"--config={student}").epochs == 2


def test_a_configuration_stands_first_or_has_its_name(student: str) -> None:
    first = train_settings(student, "--epochs", "2")
    assert first == train_settings("--config", student, "--epochs=2") == train_settings("--epochs", "2", student)
    assert train_settings(student, "--trackers", "wandb").trackers == ("wandb",)


def test_of_two_files_the_later_wins(student: str, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("epochs: 3\n")
    settings = train_settings("--config", student, "--config", str(tmp_path / "more.yaml"), "--seed", "1")
    assert (settings.epochs, settings.seed, settings.objective.terms["hard"].weight) == (3, 1, 0.5)


def test_an_override_reaches_into_a_mapping_and_leaves_its_other_entries(student: str) -> None:
    teachers = train_settings("--config", student, "--teachers.one.weight", "0.3").teachers
    assert (teachers["one"].weight, teachers["one"].cache) == (0.3, Path("no/cache"))
    assert (teachers["two"].weight, teachers["two"].cache) == (1.0, Path("no/other"))
    assert list(train_settings("--config", student, "--teachers.new.cache", "x").teachers) == ["one", "two", "new"]


def test_lists_groups_and_numbers_are_written_as_in_yaml(student: str) -> None:
    settings = train_settings(
        *("--config", student, "--trackers", "[tensorboard]", "--windows", "{length: 64, views: 2}"),
        *("--optimizer.learning_rate", "1e-3", "--validation.every", "null", "--model.tie_word_embeddings", "false"),
    )
    assert settings.trackers == ("tensorboard",)
    assert (settings.windows.length, settings.windows.views) == (64, 2)
    assert settings.optimizer.learning_rate == 1e-3
    assert settings.validation.every is None
    assert isinstance(settings.model, ModelShape)
    assert settings.model.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("arguments", "k", "draws"),
    [
        (["--logits", "{kind: hybrid}"], 16, 16),
        (["--logits.kind", "sampled"], None, 50),
        (["--logits.kind=sampled", "--logits.draws=20"], None, 20),
        (["--logits.kind", "topk"], 32, None),
        ([], 7, None),
    ],
)
def test_defaults_may_depend_on_what_is_given(arguments: list[str], k: int | None, draws: int | None) -> None:
    given = ["--teacher", "t", "--corpus", "c", "--output", "o", *arguments]
    logits = parse(CaptureSettings, given, "palenka cache run").logits.as_plain()
    assert (logits.get("k"), logits.get("draws")) == (k, draws)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--hidden.positions", "0"], "hidden.positions is 0, but it should be greater than or equal to 1"),
        (["--hidden.layers", "all"], "hidden.layers is all, but it should be 'uniform' or a list [...]"),
        (["--hidden.layers", "[1, 1]"], "hidden: layers is [1, 1], but it should name each layer once"),
        (["--hidden", "true"], "hidden is true, but it should be a mapping {...}"),
        (["--logits.kind", "top"], "logits.kind is top, but it should be 'topk', 'low_rank', 'sampled', 'hybrid' or"),
        (["--logits", "{kind: sampled, k: 3}"], "logits.k is not an option; did you mean 'logits.kind'?"),
    ],
)
def test_mistakes_in_groups_that_may_be_absent(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", "--teacher", "t", "--corpus", "c", "--output", "o", *arguments]
    assert told in mistake(PROGRAMS["cache_teachers"], given, capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--teacher.model", "x", "--corpus", "c"], "teacher is {'model': 'x'}, but it should be a path"),
        (["--teacher.model", "x"], "teacher is {'model': 'x'}, but it should be a path"),
        (["--teacher", "x"], "--tokenizer x --output CORPUS`, and give --corpus CORPUS"),
    ],
)
def test_a_teacher_is_a_path(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(PROGRAMS["cache_teachers"], ["run", "--output", "o", *arguments], capsys)


def test_resolved_settings_read_back_as_themselves(student: str, tmp_path: Path) -> None:
    settings = train_settings("--config", student, "--epochs", "2", "--optimizer.learning_rate", "1e-5")
    settings.write_yaml(tmp_path / "resolved.yaml")
    assert train_settings("--config", str(tmp_path / "resolved.yaml")) == settings


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epoch", "3"], "epoch is not an option; did you mean 'epochs'?"),
        (["--objective.logits", "3"], "objective.logits is not an option; did you mean 'objective.logit'?"),
        (["--teachers.one.wieght", "3"], "wieght is not an option; did you mean 'teachers.one.weight'?"),
        (["--windows", "{length: 8, view: 2}"], "view is not an option; did you mean 'windows.views'?"),
        (["--lr", "3"], "lr is not an option; did you mean 'optimizer.learning_rate'?"),
        (["--optimiser.learning_rate", "3"], "optimiser is not an option; did you mean 'optimizer'?"),
        (["--learning_rat", "3"], "learning_rat is not an option; did you mean 'optimizer.learning_rate'?"),
        (["--zzz", "3"], "zzz is not an option ("),
        (["--zzz"], "zzz is not an option ("),
        (["-x"], "-x is not an option ("),
        (["bogus"], "bogus is not an option, and those without a name have values: config ("),
        (["--epochs", "many"], "epochs is many, but it should be a valid integer"),
        (["--epochs", "0"], "epochs is 0, but it should be greater than or equal to 1"),
        (["--optimizer.learning_rate", "-1"], "optimizer.learning_rate is -1, but it should be greater than 0"),
        (
            ["--model.architecture", "bert"],
            "model.architecture is bert, but it should be 'llama', 'gpt2' or 'gptj'",
        ),
        (["--precision", "fp32"], "precision is fp32, but it should be 'float32', 'bf16' or 'fp16'"),
        (["--trackers", "[mlflow]"], "trackers is mlflow, but it should be 'tensorboard' or 'wandb'"),
        (["--trackers", "{}"], "trackers is {}, but it should be a list [...]"),
        (["--corpus.name", "x"], "corpus is no/corpus, which has no name; give one of the two"),
        (["--output", "$NOT_SET/x"], "output: $NOT_SET/x has $NOT_SET, which is not set; export it"),
        (["--teachers", "3"], "teachers is 3, but it should be a mapping {...}"),
        (["--teachers.new.weight", "3"], "a teacher needs a cache, or source: live and a model"),
        (
            ["--windows", "w.yaml"],
            "windows is w.yaml, but no file is taken there; write its options, as --windows.OPTION",
        ),
        (
            ["--teachers", "t.yml"],
            "as --teachers.OPTION VALUE, or give a file that has them beneath `teachers:` as --con",
        ),
        (["--model", "m.yaml", "--model.hidden_size", "8"], "model is m.yaml, but no file is taken there; write"),
        (["--model.hidden_size", "8", "--model", "m.yaml"], "model is m.yaml, but no file is taken there; write"),
        (
            ["--output", "~no-such-user/x"],
            "output: ~no-such-user/x begins with ~no-such-user, a home that is not known",
        ),
        (["--windows", "7"], "windows is 7, but it should be a mapping {...}"),
        (["--windows", "{length: ["], "windows is {length: [, but it should be a mapping {...}"),
        (["--model.hidden_size", "17"], "hidden_size 17 must be a multiple of num_attention_heads 2"),
        (["--teachers", "{}"], "objective.logit is 0.25, but there are no teachers; name one in teachers"),
        (["--epochs"], "--epochs needs a value"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], told: str, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = mistake(palenka.train_student.__main__.main, ["--config", student, *arguments], capsys)
    assert told in sentence
    assert sentence.endswith(f"(configuration {student}; see palenka train --help)")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (STUDENT + "epoch: 3\n", "epoch is not an option; did you mean 'epochs'?"),
        (
            STUDENT.replace("hidden_size", "hiden_size"),
            "model.hiden_size is not an option; did you mean 'model.hidden_size'?",
        ),
        (
            STUDENT.replace("weight", "wieght"),
            "teachers.one.wieght is not an option; did you mean 'teachers.one.weight'?",
        ),
        (STUDENT + "epochs: 8\n", "is not YAML: epochs is given twice at line 10, column 1"),
        (STUDENT.replace("hard: 0.5", "logit: 0.5"), "logit is given twice at line 6, column"),
        (STUDENT.replace("epochs: 7", "epochs: true"), "epochs is true, but it should be a valid integer"),
        (STUDENT + "plugins: mine\n", "plugins is mine, but it should be a list [...]"),
        (STUDENT.replace("epochs: 7", "epochs: seven"), "epochs is seven, but it should be a valid integer"),
        (STUDENT.replace("epochs: 7", "windows: {views: 0}"), "windows.views is 0, but it should be greater than or"),
        (STUDENT.replace("epochs: 7", "windows: w.yaml"), "windows is w.yaml, but no file is taken there"),
        (STUDENT.replace("epochs: 7", "windows: 7"), "windows is 7, but it should be a mapping {...}"),
        (STUDENT.replace("0.9", "-1"), "teachers.one.weight is -1, but it should be greater than or equal to 0"),
        (STUDENT.replace("llama", "bert"), "model.architecture is bert, but it should be 'llama', 'gpt2' or 'gptj'"),
        (
            STUDENT.replace("corpus: no/corpus", ""),
            "these options are missing: corpus; give them in a file or as --corpus",
        ),
        (STUDENT.replace("hidden_size: 16, ", ""), "these options are missing: model.hidden_size; give them"),
        ("corpus: [a\noutput: b: c", "is not YAML: while parsing a flow sequence at line 1, column 9"),
        ("corpus: a\n\toutput: b\n", "is not YAML: while scanning for the next token"),
        ("corpus: a\0b\n", "is not YAML: unacceptable character"),
        (STUDENT + "x: !!python/object/apply:os.system ['true']\n", "os.system is no type of a setting"),
        (b"corpus: \xff\xfe\n", "is not UTF-8 text: 'utf-8' codec can't decode byte 0xff in position 8"),
        ("- a\n- b\n", "has no options: it should hold lines such as `output: runs/mine`"),
        ("hello\n", "has no options"),
        ("", "has no options"),
    ],
)
def test_mistakes_in_the_file_name_the_file(
    content: str | bytes, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mistaken.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    sentence = mistake(palenka.train_student.__main__.main, ["--config", str(file)], capsys)
    assert told in sentence
    assert f"configuration {file}" in sentence


def test_what_a_file_lacks_may_come_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "part.yaml"
    file.write_text(STUDENT.replace("corpus: no/corpus", "").replace("hidden_size: 16, ", ""))
    settings = train_settings("--config", str(file), "--corpus", "here", "--model.hidden_size", "8")
    assert isinstance(settings.model, ModelShape)
    assert (settings.corpus, settings.model.hidden_size) == (Path("here"), 8)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, reason in ((tmp_path / "nothing.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        sentence = mistake(palenka.train_student.__main__.main, ["--config", str(path)], capsys)
        assert sentence == f"cannot read configuration {path}: {reason}; give a YAML file"


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        (
            "palenka",
            [],
            "palenka needs a command; choose from data, cache, train, parameters, export, eval, generate, report",
        ),
        ("palenka", ["teach"], "'teach' is not a command of palenka; choose from data, cache"),
        ("palenka", ["train"], "these options are missing: corpus, output, model.architecture"),
        ("palenka", ["eval", "/nowhere"], "these options are missing: out"),
        ("palenka", ["cache", "rum"], "'rum' is not a command of palenka cache; choose from plan, run, verify"),
        ("palenka", ["study"], "these options are missing: output, corpus, students"),
        ("palenka", ["study", "--config=/nowhere.yaml"], "cannot read configuration /nowhere.yaml"),
        ("palenka", ["study", "/nowhere.yaml"], "cannot read configuration /nowhere.yaml: No such file or directory"),
        ("palenka", ["study", "--config"], "--config needs a value"),
        ("palenka", ["demo", "--outptu", "x"], "outptu is not an option; did you mean 'output'?"),
        ("data", [], "palenka data needs a command; choose from fetch, prepare"),
        ("data", ["prepare"], "these options are missing: sources, output"),
        ("data", ["prepare", "--sources", "/nowhere", "--output", "/nowhere/out"], "sources /nowhere does not exist"),
        ("cache_teachers", [], "palenka cache needs a command; choose from plan, run, verify, inspect"),
        (
            "cache_teachers",
            ["run", "--micro_batch", "0"],
            "micro_batch is 0, but it should be greater than or equal to 1",
        ),
        ("train_student", ["--model.architecture", "bert"], "model.architecture is bert"),
        ("eval", [], "these options are missing: model, out; give them in a file or as --model VALUE"),
        ("eval", ["/m", "--data", "/nowhere", "--out", "/o", "--suite", "ewok"], "suite is ewok, but it should be"),
        (
            "eval",
            ["/m", "--data", "/nowhere", "--out", "/o"],
            "data /nowhere is not a folder; give the one that holds what held_out needs",
        ),
    ],
)
def test_mistakes_by_program(program: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(PROGRAMS[program], arguments, capsys)


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        ("palenka", [], "prepare a corpus"),
        ("palenka", ["train"], "--optimizer.learning_rate"),
        ("palenka", ["study"], "Settings of the students' training, by name"),
        ("data", [], "clean raw text"),
        ("data", ["prepare"], "--vocabulary_size"),
        ("cache_teachers", [], "capture a teacher"),
        ("cache_teachers", ["run"], "--logits.temperatures"),
        ("train_student", [], "Windows in an optimizer step, over all processes."),
        ("eval", [], "--suite"),
    ],
)
def test_help_tells_what_there_is(
    program: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        PROGRAMS[program]([*arguments, "--help"])
    assert told in " ".join(capsys.readouterr().out.split())


def test_an_interruption_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Sequence[str]) -> None:
        raise KeyboardInterrupt

    assert run(interrupted, []) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted; run the same command again: what is finished is kept\n"


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def terminated(_: Sequence[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run(terminated, []) == 143
    assert cleaned == [True]
    assert capsys.readouterr().err == "stopped by SIGTERM: what is finished is kept; run the same command again\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.hidden_size", "64", "--model", "{architecture: llama}"],
        ["--teachers.one.weight", "0.5", "--epochs", "2", "--teachers", "{}"],
    ],
)
def test_an_option_that_a_later_one_would_drop_is_refused(student: str, arguments: list[str]) -> None:
    first, whole = arguments[0], arguments[-2]
    with pytest.raises(UserError, match=f"{whole} replaces {re.escape(first)}, which is given before it; give {whole}"):
        train_settings(student, *arguments)
    # What a file has may be replaced as a whole, and a weight alone leaves the term's other options.
    train_settings(student, "--teachers", "{}", "--objective", "{hard: 1}")
    terms = train_settings(student, "--objective.logit.schedule.start", "1", "--objective.logit", "0.5").objective.terms
    assert (terms["logit"].weight, terms["logit"].schedule is None) == (0.5, False)


def test_a_mistake_of_the_programs_own_is_not_hidden() -> None:
    def broken(_: Sequence[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken, [])


def test_a_study_names_the_file_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = {"output": "o", "corpus": "corpus.yaml", "students": {"a": "student.yaml"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "corpus.yaml").write_text("sources: s\noutput: o\n")
    command = ["study", "--config", str(tmp_path / "study.yaml")]
    sentence = mistake(PROGRAMS["palenka"], command, capsys)
    assert sentence.startswith(f"cannot read configuration {tmp_path / 'student.yaml'}: No such file")
    (tmp_path / "student.yaml").write_text(STUDENT.replace("epochs: 7", "epocs: 7"))
    sentence = mistake(PROGRAMS["palenka"], command, capsys)
    assert sentence == f"configuration {tmp_path / 'student.yaml'}: epocs is not an option; did you mean 'epochs'?"
    (tmp_path / "student.yaml").write_text("corpus: c\n")
    sentence = mistake(PROGRAMS["palenka"], command, capsys)
    assert f"(configuration {tmp_path / 'student.yaml'}; see palenka train --help)" in sentence


def test_every_configuration_that_comes_with_the_project_is_valid() -> None:
    checked = 0
    for file in (Path(__file__).parents[2] / "configs").rglob("*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "students" in content:
            Study(*parse_file(StudySettings, [str(file)], "palenka study"))
        elif "seeds" in content:
            Grid(*parse_file(GridSettings, ["--config", str(file)], "palenka grid"))
        else:
            schema: type[Command] = CorpusSettings if "sources" in content else CaptureSettings
            parse(TrainSettings if "model" in content else schema, ["--config", str(file)], "palenka")
        checked += 1
    assert checked > 8


def test_a_difference_names_the_first_field_and_both_sides() -> None:
    expected = {"a": 1, "b": {"c": [1, 2], "d": "x"}}
    refuse_difference("cache c", expected, {"b": {"d": "x", "c": [1, 2]}, "a": 1}, "capture again")
    with pytest.raises(UserError, match=r"^cache c does not match: b\.d is 'y' there, but 'x' is expected; again$"):
        refuse_difference("cache c", expected, {"a": 1, "b": {"c": [1, 2], "d": "y"}}, "again")
    with pytest.raises(UserError, match=r"e is 5 there, but None is expected"):
        refuse_difference("cache c", expected, expected | {"e": 5}, "again")
    with pytest.raises(UserError, match=r"b is 7 there, but {'c'"):
        refuse_difference("cache c", expected, expected | {"b": 7}, "again")


def test_settings_are_frozen_and_know_their_help() -> None:
    for schema in (TrainSettings, CaptureSettings, CorpusSettings, StudySettings, GridSettings, PointSettings):
        undescribed = [name for name, field in schema.model_fields.items() if not field.description]
        assert undescribed == []
        assert schema.model_config["frozen"]
