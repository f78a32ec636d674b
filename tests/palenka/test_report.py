"""The report: it says what the files say, whatever they are called, and nothing on the page is from elsewhere."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from palenka.__main__ import main
from palenka.cache_teachers.settings import CaptureSettings, VerifySettings
from palenka.cache_teachers.verify import verify
from palenka.data.model_files import identity_of
from palenka.data.signals.cache import TeacherCache
from palenka.eval.compare import compare_suite
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import items_file, read_items, read_results, write_results
from palenka.eval.suite import Conditions, column
from palenka.eval.suites import SUITES
from palenka.generate import GenerateSettings, draw_samples
from palenka.ground.errors import UserError
from palenka.ground.records import commit, committed_files, read_commit, write_sealed
from palenka.report.cache_card import make_card
from palenka.report.costs import break_even
from palenka.report.figures import cache_figures, thin, without_rest
from palenka.report.finding import verdict_of
from palenka.report.models import join_models, measures_of
from palenka.report.names import distinct_names
from palenka.report.phenomena import PHENOMENA
from palenka.report.results import Estimate
from palenka.report.sources import find_sources
from palenka.report.write import try_report, write_report
from palenka.study_record import CacheRow, ModelRow, StudyFiles, StudyResults
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

HOSTILE = "<script>alert(1)<&\"'x_🦊$"


class Page(HTMLParser):
    """A page's elements, attributes, text and tables; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.text.append(data)
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def row(self, name: str) -> str:
        """All cells of all rows with this name, as one string."""
        return " | ".join(" ".join(cell.split()) for row in self.rows if row and row[0].strip() == name for cell in row)


@pytest.fixture(scope="module")
def study(
    corpus_directory: Path,
    settings_of_capture: Callable[..., CaptureSettings],
    settings_of_run: Callable[..., TrainSettings],
    changed: Callable[..., TrainSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder as a study leaves it: a cache, a control, a student with a hostile name, measures and seconds."""
    from palenka.cache_teachers.capture import capture

    folder = tmp_path_factory.mktemp("study") / "small"
    captured = settings_of_capture(output=folder / "cache-big")
    capture(captured)
    run = settings_of_run(output=folder / "control", global_batch=16, epochs=2, fraction=0.2, log_every=5)
    teachers = {"<i>big": {"cache": folder / "cache-big"}}
    objective = {"hard": 0.5, "logit": 0.25, "temperature": 2.0}
    train(run)
    train(changed(run, output=folder / HOSTILE, teachers=teachers, objective=objective))
    for name in ("control", HOSTILE):
        asked = Measurement(folder / name, {"held_out": corpus_directory}, Conditions(length=run.windows.length))
        measure(asked, folder / "held_out" / f"{name}.json")
    verify(VerifySettings.model_validate(captured.as_plain() | {"sample": 8}))
    drawn = GenerateSettings(model=folder / HOSTILE, prompt=("<b>the teacher", ""), tokens=4)
    draw_samples(drawn.model_copy(update={"out": folder / "samples" / "student.json"}))
    seconds = {"corpus": 1.5, "cache big": 12.25, "student control": 3.0, f"student {HOSTILE}": 4.0}
    StudyFiles(folder).write_seconds(seconds)
    cache = CacheRow.of("big", TeacherCache(folder / "cache-big"), folder)
    StudyFiles(folder).write(StudyResults(caches=(cache,)))
    return folder


def write_again(path: Path, record: dict[str, Any]) -> None:
    """A record as if it had been so from the start; the run that it may be of is whole again."""
    write_sealed(path, {name: value for name, value in record.items() if name != "checksum"})
    commit_again(path.parent)


def commit_again(run: Path) -> None:
    if (run / "result.json").is_file():
        files, facts = committed_files(run, "result.json"), read_commit(run, "result.json")
        commit(run, "result.json", files, **facts)


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(study, tmp_path / "copy"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def report(*folders: Path, out: Path) -> Page:
    write_report(folders, out)
    return Page(out.read_text(encoding="utf-8"))


def loss_in(record: Any) -> Any:
    """The held-out cross-entropy in a file of results."""
    return record["suites"][0]["figures"]["cross_entropy"]


def pairs_of(study: Path, name: str, accuracies: dict[str, float], suite: str = "blimp_filtered") -> dict[str, Any]:
    """Results of minimal pairs for a run, 101 pairs a task."""
    tasks = {
        task: {"value": value, "stderr": math.sqrt(value * (1 - value) / 100), "n": 101}
        for task, value in accuracies.items()
    }
    accuracy = {
        "value": sum(accuracies.values()) / len(accuracies),
        "stderr": 0.01,
        "n": 101 * len(tasks),
        "higher_is_better": True,
        "tasks": tasks,
    }
    result = {
        "suite": suite,
        "title": suite,
        "version": 1,
        "data": "d",
        "conditions": {"protocol": "babylm-2024", "precision": "float32"},
        "figures": {"accuracy": accuracy},
        "facts": {"tie_half_accuracy": 0.4321, "tie_rate": 0.0625},
    }
    model = {"weights": identity_of(study / name, "float32").weights, "config": {}}
    return {"name": name, "model": model, "parameters": 1, "suites": [result]}


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize("name", ["control", HOSTILE])
def test_the_row_of_a_run_is_what_its_files_say(study: Path, tmp_path: Path, name: str) -> None:
    row = report(study, out=tmp_path / "report.html").row(name)
    result, held_out = read(study / name / "result.json"), loss_in(read(study / "held_out" / f"{name}.json"))
    assert f"{result['parameters']:,}" in row
    low, high = held_out["interval"]
    assert f"{held_out['value']:.4f}{low:.4f} to {high:.4f}" in row
    assert f"{result['tokens']:,}" in row
    assert f"{result['validation_cross_entropy']:.4f}" in row


@pytest.mark.usefixtures("no_drawings")
def test_the_row_of_a_run_has_its_role_and_objective(study: Path, tmp_path: Path) -> None:
    page = report(study, out=tmp_path / "report.html")
    assert "student | " in page.row(HOSTILE)
    assert "control | control" in page.row("control")
    assert "0.5 hard + 0.25 logit, T = 2; 1.0 <i>big" in page.row(HOSTILE)


@pytest.mark.usefixtures("no_drawings")
def test_the_row_of_a_cache_is_what_the_cache_measures(study: Path, tmp_path: Path) -> None:
    cache, row = TeacherCache(study / "cache-big"), report(study, out=tmp_path / "report.html").row("cache-big")
    assert f"{sum(cache.bytes_per_token().values()):.2f}" in row
    assert all(f"{mass:.4f}" in row for mass in cache.kept_mass().values())
    assert f"{cache.captured_tokens():,}" in row


def test_a_term_is_drawn_under_its_name(study: Path, tmp_path: Path) -> None:
    assert "logit/<i>big" in report(study, out=tmp_path / "report.html").words()


def test_everything_is_on_the_page_and_everything_is_escaped(study: Path, tmp_path: Path) -> None:
    page = report(study, out=tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert not {"link", "img", "iframe", "object", "i"} & set(page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    for _, name, value in page.attributes:
        assert name != "src"
        assert not name.startswith("on")
        assert name not in ("href", "xlink:href") or value.startswith("#")
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert all(value[1:] in targets for _, name, value in page.attributes if name == "href")
    drawings = re.findall(r'<svg class="(\w+)"', html)
    assert drawings.count("wide") == drawings.count("narrow") >= 9
    assert HOSTILE in page.words()
    assert f"{tmp_path}" not in html


def test_the_same_files_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([study], out)
    first = out.read_bytes()
    write_report([study], out)
    assert out.read_bytes() == first


def test_what_is_found_twice_is_told_once(study: Path) -> None:
    once, twice = find_sources([study]), find_sources([study / "control", study, study])
    assert {run.directory.name for run in twice.runs} == {"control", HOSTILE}
    assert [len(found) for found in (twice.runs, twice.caches, twice.results)] == [2, 1, 2]
    assert [path for path, _ in once.results] == [path for path, _ in twice.results]


def give_losses(path: Path, losses: Callable[[Any], Any]) -> None:
    """Measure anew, as if a model's losses of the windows had been others."""
    results, table = read_results(path), read_items(path)["held_out"]
    changed = pa.array(losses(column(table, "loss").astype(np.float64)).astype(np.float32))
    table = table.set_column(table.column_names.index("loss"), "loss", changed)
    (result,) = results.suites
    figures = SUITES["held_out"].figures(table).figures
    write_results(
        path, results.model_copy(update={"suites": (result.model_copy(update={"figures": figures}),)}), [table]
    )


@pytest.mark.usefixtures("no_drawings")
def test_the_headline_claims_no_more_than_a_paired_test(copy: Path, tmp_path: Path) -> None:
    ours, theirs = (copy / "held_out" / f"{name}.json" for name in (HOSTILE, "control"))
    hard = np.random.RandomState(0).normal(3.0, 1.0, size=len(read_items(ours)["held_out"]))

    def with_student_at(difference: float, deviation: float) -> str:
        own = difference + np.random.RandomState(1).normal(0.0, deviation, size=len(hard))
        give_losses(theirs, lambda _: hard)
        give_losses(ours, lambda _: hard + own - own.mean() + difference)
        return report(copy, out=tmp_path / "report.html").words()

    # The levels' intervals overlap by far: what is hard in the text is so for both.
    assert f"{HOSTILE} ends 0.100 nats per token below its control: separated" in with_student_at(-0.1, 0.05)
    assert f"{HOSTILE} ends 0.001 nats per token below its control: not separated" in with_student_at(-0.001, 0.5)
    words = with_student_at(0.2, 0.05)
    assert f"{HOSTILE} ends 0.200 nats per token above its control: separated" in words
    row = compare_suite(ours, theirs, "held_out")
    assert row["difference"] == pytest.approx(0.2, abs=1e-6)
    low, high = row["interval"]
    assert f"the paired 95 % interval of the difference is {low:+.4f} to {high:+.4f} (p < 0.0001)" in words
    items_file(ours).unlink()
    words = report(copy, out=tmp_path / "report.html").words()
    assert f"{HOSTILE} ends 0.200 nats per token above its control: not separated" in words
    assert "was not kept, so there is no paired test: their 95 % intervals overlap" in words


@pytest.mark.usefixtures("no_drawings")
def test_a_headline_is_about_held_out_text_whatever_else_is_a_loss(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "held_out")
    for name, value in (("control", 0.75), (HOSTILE, 0.5)):
        record = pairs_of(copy, name, {"lines": value}, "surprise")
        figure = record["suites"][0]["figures"].pop("accuracy") | {"higher_is_better": False, "unit": "nats"}
        record["suites"][0]["figures"] = {"nats": figure}
        write_again(copy / f"{name}.json", record)
    words = report(copy, out=tmp_path / "report.html").words()
    assert "Held-out text was not measured for 1 student and a control" in words
    assert "Surprise (babylm-2024): lower is better" in words


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize(
    ("interval", "p_value", "chosen", "verdict"),
    [
        ((-0.2, -0.01), 0.03, 1, "separated"),
        ((-0.2, -0.01), 0.03, 2, "separated before allowing for the choice among 2"),
        ((-0.2, -0.01), 0.02, 2, "separated"),
        ((-0.2, 0.01), 0.08, 1, "not separated"),
        ((0.01, 0.2), None, 3, "separated"),
    ],
)
def test_the_best_of_several_had_as_many_chances(
    interval: tuple[float, float], p_value: float | None, chosen: int, verdict: str
) -> None:
    assert verdict_of({"interval": interval, "p_value": p_value}, chosen) == verdict


def test_runs_of_different_corpora_share_no_sentence_and_no_chart(copy: Path, tmp_path: Path) -> None:
    for field, changed in (("corpus", "f" * 64), ("tokenizer", "e" * 64)):
        other = Path(shutil.copytree(copy / "control", copy / f"other-{field}"))
        inputs = read(other / "inputs.json")
        write_again(other / "inputs.json", inputs | {field: changed})
    page = report(copy, out=tmp_path / "report.html")
    assert f"{HOSTILE} ends " in page.words()
    assert "its control" in page.words()
    # The other controls have the same results, being the same weights; they read another corpus, though.
    assert re.search(r"cross-entropy of \S+ nats per token, control \S+ nats", page.words())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    charts = re.findall(r'<svg class="wide"[^>]*aria-label="Training cross-entropy".*?</svg>', html, flags=re.DOTALL)
    names = [sorted(map(unescape, re.findall(r"<title>([^:]*):", chart))) for chart in charts]
    assert sorted(names) == sorted([sorted([HOSTILE, "control"]), ["other-corpus"], ["other-tokenizer"]])
    (copy / "control" / "result.json").unlink()
    assert "No control stands beside the 1 student" in report(copy, out=tmp_path / "report.html").words()


@pytest.mark.usefixtures("no_drawings")
def test_results_of_an_older_version_of_a_suite_stand_apart(copy: Path, tmp_path: Path) -> None:
    path = copy / "held_out" / f"{HOSTILE}.json"
    results, table = read_results(path), read_items(path)["held_out"]
    (result,) = results.suites
    older = result.model_copy(update={"version": result.version - 1})
    write_results(path, results.model_copy(update={"suites": (older,)}), [table])
    words = report(copy, out=tmp_path / "report.html").words()
    assert "Held-out text was not measured for 1 student and a control" in words
    assert f"; version {older.version}" in words
    assert f"; version {result.version}" in words


@pytest.mark.usefixtures("no_drawings")
def test_a_sentence_about_a_corpus_has_the_windows_of_its_best_student(copy: Path, tmp_path: Path) -> None:
    for name in (HOSTILE, "control"):
        far = Path(shutil.copytree(copy / name, copy / f"far-{name}"))
        write_again(far / "inputs.json", read(far / "inputs.json") | {"corpus": "f" * 64})
    # The same weights: of two that are as good, the first by name counts as the best.
    shorter = Path(shutil.copytree(copy / HOSTILE, copy / "zz"))
    config = (shorter / "config.yaml").read_text(encoding="utf-8")
    assert "length: 16" in config
    (shorter / "config.yaml").write_text(config.replace("length: 16", "length: 8"), encoding="utf-8")
    commit_again(shorter)
    words = report(copy, out=tmp_path / "report.html").words()
    assert "the best of 2 students" in words
    assert re.search(r"That is about [^.]*windows of 16 tokens", words)


@pytest.mark.usefixtures("no_drawings")
def test_the_official_table_says_how_much_of_it_is_missing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = pairs_of(copy, "control", {"wh_island": 0.9})
    record["suites"] += pairs_of(copy, "control", {"hypernym": 0.625}, "blimp_supplement")["suites"]
    for result in record["suites"]:
        result["conditions"]["protocol"] = "babylm-2025"
    write_again(copy / "control.json", record)
    words = report(copy, out=tmp_path / "report.html").words()
    assert "the mean of all 9, 7 of which were measured of no model; what is missing counts as 0." in words
    monkeypatch.setattr("palenka.report.page.COLUMNS", ("BLiMP", "supplement"))
    words = report(copy, out=tmp_path / "report.html").words()
    assert "the mean of all 2; what is missing counts as 0." in words


def test_minimal_pairs_stand_by_phenomenon_and_paradigm(copy: Path, tmp_path: Path) -> None:
    scores = {"ellipsis_n_bar_1": 0.75, "ellipsis_n_bar_2": 0.25, "wh_island": 0.9}
    record = pairs_of(copy, "control", scores)
    record["suites"] += pairs_of(copy, "control", {"hypernym": 0.625}, "supplement")["suites"]
    write_again(copy / "control.json", record)
    page = report(copy, out=tmp_path / "report.html")
    assert page.row("ellipsis").startswith("ellipsis | 50.0 ± ")
    assert page.row("ellipsis n bar 1") == f"ellipsis n bar 1 | 75.0 ± {100 * math.sqrt(0.75 * 0.25 / 100):.1f}"
    assert page.row("island effects").startswith("island effects | 90.0 ± 3.0")
    assert page.row("hypernym") == "hypernym | 62.5 ± 4.8"
    assert "63.3 ± 1.0" in page.row("all")
    assert "all, ties as one half | 43.2" in page.row("all, ties as one half")
    assert "tied pairs | 6.2" in page.row("tied pairs")
    assert "63.361.4 to 65.3" in page.row("control")


def test_a_phenomenon_without_all_its_paradigms_has_no_mean(copy: Path, tmp_path: Path) -> None:
    whole, part = {"ellipsis_n_bar_1": 0.75, "ellipsis_n_bar_2": 0.25, "wh_island": 0.9}, {"ellipsis_n_bar_1": 0.75}
    write_again(copy / "control.json", pairs_of(copy, "control", whole))
    write_again(copy / "student.json", pairs_of(copy, HOSTILE, part))
    page = report(copy, out=tmp_path / "report.html")
    assert re.match(r"ellipsis \| 50\.0 ± 3\.\d \| – \|", page.row("ellipsis"))


def test_an_evaluated_model_without_a_run_stands_under_its_files_name(copy: Path, tmp_path: Path) -> None:
    result = read(copy / "held_out" / "control.json")
    shutil.rmtree(copy / "control")
    page = report(copy, out=tmp_path / "report.html")
    assert page.row("control").startswith(
        f"control | model | {result['parameters']:,} | {loss_in(result)['value']:.4f}"
    )
    assert "No control stands beside the 1 student" in page.words()


@pytest.mark.usefixtures("no_drawings")
def test_results_that_do_not_compare_stand_in_columns_of_their_own(copy: Path, tmp_path: Path) -> None:
    path = copy / "held_out" / "control.json"
    first = read(path)
    assert len(measures_of(join_models(find_sources([copy])))) == 1
    other = read(path)
    other["suites"][0]["conditions"]["length"] = 8
    loss_in(other).update(value=2.5, interval=[2.4, 2.6])
    for name, value in (("per_word", 9.25), ("per_byte", 1.125)):
        other["suites"][0]["figures"][name]["value"] = value
    write_again(copy / "held_out" / "short.json", other)
    short, long = sorted(measures_of(join_models(find_sources([copy]))), key=lambda measure: measure.conditions)
    assert short.condition([short, long]) == "length 8"
    assert short.condition([short]) == ""
    row = report(copy, out=tmp_path / "report.html").row("control")
    assert "2.50002.4000 to 2.6000 | 9.2500 | 1.1250" in row
    assert f"{loss_in(first)['value']:.4f}" in row


def test_other_json_is_no_result(copy: Path) -> None:
    before = len(find_sources([copy]).results)
    for number, content in enumerate(('{"suites": {"blimp": {}}}', "[1]", '{"a": 1}')):
        (copy / f"other{number}.json").write_text(content)
    assert len(find_sources([copy]).results) == before


def test_a_teacher_is_told_from_a_control_by_its_weights(copy: Path) -> None:
    roles = {model.name: model.role for model in join_models(find_sources([copy]))}
    assert roles == {"control": "control", HOSTILE: "student"}
    path = copy / HOSTILE / "inputs.json"
    inputs = read(path)
    inputs["teachers"]["<i>big"]["teachers"]["teacher"]["weights"] = identity_of(copy / "control", "float32").weights
    write_again(path, inputs)
    assert {model.name: model.role for model in join_models(find_sources([copy]))}["control"] == "teacher"


def test_metrics_of_any_term_and_ratio_are_drawn(copy: Path, tmp_path: Path) -> None:
    path = copy / HOSTILE / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line |= {"hidden/t": 0.5, "gradient_ratio/hidden/t": 0.01 * line["step"], "loss": None}
    path.write_text("\n".join(map(json.dumps, lines)))
    commit_again(path.parent)
    page = report(copy, out=tmp_path / "report.html")
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert {"Term hidden/t", "Term logit/<i>big", "Gradient ratio of hidden/t"} <= set(labels)
    assert "No gradient ratios were logged" not in page.words()


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize(
    ("kept", "absent"),
    [
        (["control"], ["No distilled student", "No teacher cache", "No seconds.json", "No results of minimal pairs"]),
        (["cache-big"], ["No finished run and no evaluation result", "so there are no learning curves"]),
        (["held_out"], ["No finished run was found", "No run logged a distillation term"]),
        (["seconds.json"], ["needs a study with captures"]),
        ([HOSTILE, "control"], ["Held-out text was not measured for 1 student"]),
        ([HOSTILE, "held_out"], ["No control stands beside the 1 student"]),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    copy: Path, tmp_path: Path, kept: list[str], absent: list[str]
) -> None:
    for path in copy.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = report(copy, out=tmp_path / "report.html").words()
    for sentence in absent:
        assert sentence in words


@pytest.mark.usefixtures("no_drawings")
def test_results_that_are_gone_are_named(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, other, last = (copy / "held_out" / f"{name}.json" for name in ("other", "control", HOSTILE))
    for path in (figures, items_file(figures)):
        shutil.copy(other.with_suffix(path.suffix), path)
    assert not find_sources([copy]).lacking
    figures.unlink()  # its items are left behind
    items_file(other).unlink()
    items_file(last).write_bytes(b"damaged")
    row = ModelRow(name="gone", role="student", parameters=1, suites={})
    seconds = StudyFiles(copy).read_seconds()
    StudyFiles(copy).write(StudyResults(models=(row,), seconds=seconds))
    gone = copy / "measures" / "gone.json"
    expected = {figures: items_file(figures), items_file(other): other, items_file(last): last}
    assert find_sources([copy]).lacking == {gone: copy / "results.json", **expected}
    words = report(copy, out=tmp_path / "report.html").words()
    said = capsys.readouterr().err
    for path in (gone, *expected):
        assert f"{path} is gone, or is not as it was written" in " ".join(said.split())
        assert f"{path.name} is gone, or is not as it was written" in words


@pytest.mark.usefixtures("no_drawings")
def test_runs_that_are_not_finished_are_named_and_left_out(copy: Path, tmp_path: Path) -> None:
    (copy / "control" / "result.json").unlink()
    page = report(copy, out=tmp_path / "report.html")
    assert "Unfinished runs" in page.words()
    assert "control unfinished" in page.words()
    assert len(join_models(find_sources([copy]))) == 2  # its result on held-out text still stands


def test_the_card_is_what_the_cache_holds(study: Path) -> None:
    cache = TeacherCache(study / "cache-big")
    card = make_card("big", cache)
    assert card.hidden_errors == cache.hidden_errors()
    assert set(card.bytes_by_array) == set(cache.bytes_per_token())
    files = [path for path in (study / "cache-big").rglob("c/*/*/0/0") if path.is_file()]
    assert sum(card.bytes_by_array.values()) == sum(path.stat().st_size for path in files)
    assert card.bytes_per_token() == pytest.approx(sum(cache.bytes_per_token().values()))
    assert card.tokens == card.possible_tokens == cache.manifest.num_windows(0) * 16
    signal = cache.read(0, np.arange(card.sampled_tokens // 16))
    for temperature in cache.manifest.logits.temperatures:
        kept = signal.at(temperature).log_kept.double().exp()
        mass = kept.sum(-1)
        tail = (1 - mass).log()
        assert card.kept_mass_histograms[temperature].mean == pytest.approx(float(mass.mean()), abs=1e-6)
        entropy = -(kept * kept.log()).sum(-1) - tail.exp() * tail
        assert card.entropy_histograms[temperature].mean == pytest.approx(float(entropy.mean()), abs=1e-5)
        shares, _ = np.histogram(mass.numpy(), bins=40, range=(0, 1))
        assert card.kept_mass_histograms[temperature].shares == pytest.approx(shares / shares.sum(), abs=2e-3)
        assert card.entropy_histograms[temperature].shares.sum() == pytest.approx(1)


def test_an_entropy_is_a_lower_bound_where_the_others_are_not_known(
    study: Path, capture_settings: CaptureSettings, changed: Callable[..., CaptureSettings]
) -> None:
    from palenka.cache_teachers.capture import capture

    capture(changed(capture_settings, logits={"kind": "low_rank", "k": 4, "rank": 4}))
    for folder, is_bound in ((study / "cache-big", True), (capture_settings.output, False)):
        drawn = cache_figures(make_card("cache", TeacherCache(folder)))
        (caption,) = (caption for caption, _ in drawn if caption.startswith("Entropy"))
        assert ("a lower bound" in caption) == is_bound
        assert any("all other tokens as one" in figure for _, figure in drawn) == is_bound


@pytest.mark.usefixtures("no_drawings")
def test_the_card_shows_how_far_the_cache_is_from_its_teacher(copy: Path, tmp_path: Path) -> None:
    found = TeacherCache(copy / "cache-big").fidelity()
    assert found is not None
    assert found.windows == 8
    page = report(copy, out=tmp_path / "report.html")
    parts = (found.missing, found.truncation, found.rounding)
    missing, truncation, rounding = (f"{values['1.0']:.2g}" for values in parts)
    assert f"cache-big | 1 | {missing} | {truncation} | – | {rounding} | 8" in page.row("cache-big")
    record = copy / "cache-big" / "commits" / "fidelity.json"
    kept = read(record)
    write_sealed(record, {name: value for name, value in kept.items() if name != "checksum"} | {"store": "another"})
    assert TeacherCache(copy / "cache-big").fidelity() is None
    assert (
        "How far cache-big is from the teacher was not measured" in report(copy, out=tmp_path / "report.html").words()
    )
    record.write_text(record.read_text().replace("another", "other"))
    with pytest.raises(UserError, match=r"fidelity\.json was changed since it was written.*verify the cache again"):
        TeacherCache(copy / "cache-big").fidelity()


def test_samples_stand_by_prompt_under_the_model_of_their_weights(copy: Path, tmp_path: Path) -> None:
    path = copy / "samples" / "student.json"
    kept = read(path)
    write_again(copy / "samples" / "stranger.json", kept | {"weights": "of no model here", "name": "stranger"})
    page = report(copy, out=tmp_path / "report.html")
    assert [sample["prompt"] for sample in kept["samples"]] == ["<b>the teacher", ""]
    for sample in kept["samples"]:
        added = sample["text"].strip().removeprefix(sample["prompt"].strip())
        assert " ".join(f"{HOSTILE} {'…' * bool(sample['prompt'])}{added}".split()) in page.words()
    assert "<b>the teacher 4 tokens at most, temperature 0.8, top p 0.95, seed 0" in page.words()
    assert "Nothing given" in page.words()
    assert "stranger" not in page.words()


def test_what_a_run_was_trained_with_and_by_which_command_is_shown(study: Path, tmp_path: Path) -> None:
    page = report(study, out=tmp_path / "report.html")
    for name in ("control", HOSTILE):
        (call,) = Run(study / name).calls()
        row = page.row(name)
        assert "0.0005cosine | 16 × 16 | 0" in row
        assert f"{call.date[:10]} {call.date[11:16]} | {call.hardware}; float32" in row
        assert f"torch {version('torch')}" in row
        assert call.command in row


def test_revisions_are_a_curve_and_no_models(copy: Path, tmp_path: Path) -> None:
    figure = {"value": 0.5, "stderr": 0.01, "interval": [0.48, 0.52], "n": 100, "higher_is_better": True}
    suite = {"title": "BLiMP filtered", "conditions": {"protocol": "babylm-2025"}, "figure": figure}
    held = read(copy / "held_out" / "control.json")
    points = []
    for number, name in enumerate(("chck_1M", "chck_2M", "chck_3M"), start=1):
        change = {
            "figure": figure | {"value": 0.5 + 0.1 * number, "interval": [0.45 + 0.1 * number, 0.55 + 0.1 * number]}
        }
        place = {"revision": name, "step": number, "words": number * 1_000_000, "weights": f"of {name}"}
        points.append(place | {"suites": {"blimp_filtered": suite | change}})
        measured = {name: value for name, value in held.items() if name != "checksum"}
        write_again(
            copy / "curve" / f"{name}.json",
            measured | {"name": name, "items": "", "model": {"weights": f"of {name}", "config": {}}},
        )
    curve = {"kind": "revisions", "name": "control", "model": held["model"], "revisions": points}
    write_again(copy / "curve.json", curve)
    page = report(copy, out=tmp_path / "report.html")
    assert "chck_1M" not in page.words()
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    (chart,) = re.findall(
        r'<svg class="wide"[^>]*aria-label="BLiMP filtered over revisions".*?</svg>', html, flags=re.DOTALL
    )
    assert "<title>control: 80 at 3 million words read</title>" in chart
    assert "BLiMP filtered (protocol babylm-2025), with 95 % intervals." in page.words()


def test_a_cache_that_was_only_begun_is_no_failure(copy: Path, tmp_path: Path) -> None:
    for record in (copy / "cache-big" / "commits").glob("0-*.json"):
        record.unlink()
    assert "Nothing is captured yet." in report(copy, out=tmp_path / "report.html").words()


@pytest.mark.usefixtures("no_drawings")
def test_the_break_even_is_that_of_the_recorded_seconds(study: Path, tmp_path: Path) -> None:
    sources = find_sources([study])
    costs = break_even(next(iter(sources.studies)), sources)
    assert costs is not None
    captured = TeacherCache(study / "cache-big").captured_tokens()
    read_by_student = read(study / HOSTILE / "result.json")["tokens"]
    assert costs.live_seconds == pytest.approx(read_by_student * 12.25 / captured)
    assert costs.students_needed == pytest.approx(captured / read_by_student)
    assert costs.saving(25) == pytest.approx(25 * costs.live_seconds - 12.25)
    page = report(study, out=tmp_path / "report.html")
    assert f"{costs.saving(25):,.0f}" in page.row("25")
    first = math.floor(captured / read_by_student) + 1
    assert f"cheaper than live teachers from student {first} on" in page.words()


@pytest.mark.usefixtures("no_drawings")
def test_a_student_of_another_cache_does_not_count(copy: Path) -> None:
    path = copy / HOSTILE / "inputs.json"
    inputs = read(path)
    inputs["teachers"]["<i>big"]["logits"]["k"] = 4
    write_again(path, inputs)
    sources = find_sources([copy])
    assert break_even(next(iter(sources.studies)), sources) is None


def test_the_phenomena_are_those_of_blimp() -> None:
    assert len(PHENOMENA) == 12
    paradigms = [paradigm for members in PHENOMENA.values() for paradigm in members]
    assert len(paradigms) == len(set(paradigms)) == 67


def test_series_are_thinned_by_means_and_lose_a_last_short_step() -> None:
    steps, values = np.arange(10, 1010, 10.0), np.arange(100.0)
    thinned = thin((steps, values), 10)
    assert thinned[1].tolist() == [4.5 + 10 * part for part in range(10)]
    assert thin((steps[:3], values[:3]), 10)[0].tolist() == [10, 20, 30]
    assert without_rest((np.append(steps, 1001), np.append(values, 7.0)))[0][-1] == 1000
    assert len(without_rest((steps, values))[0]) == 100


def test_names_are_as_short_as_they_differ(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/run", "b/run", "b/other")]
    assert list(distinct_names(paths).values()) == ["a/run", "b/run", "other"]


def test_intervals_that_touch_are_not_separated() -> None:
    assert not Estimate(1.0, 0.9, 1.1).separated_from(Estimate(1.2, 1.1, 1.3))
    assert Estimate(1.0, 0.9, 1.1).separated_from(Estimate(1.3, 1.2, 1.4))


def test_the_command(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "report.html"
    assert main(["report", str(study / "control"), "--out", str(out), str(study / HOSTILE)]) == 0
    assert capsys.readouterr().out == f"Written to {out}\n"
    assert HOSTILE in Page(out.read_text(encoding="utf-8")).words()
    assert main(["report", str(study), f"--out={out}"]) == 0


@pytest.fixture
def why_refused(refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Why there is no report about folders; none is written, and what lies in its place stays."""

    def why(*folders: Path, out: Path = tmp_path / "report.html") -> str:
        was_there = out.exists()
        said = refused("report", *folders, "--out", out)
        assert out.exists() == was_there
        return said

    return why


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, why_refused: Callable[..., str]) -> None:
    assert "none is not a folder" in why_refused(tmp_path / "none")


def test_there_is_no_report_about_nothing(tmp_path: Path, why_refused: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "nothing to report on in" in why_refused(tmp_path / "empty")
    assert "these options are missing" in why_refused()


def test_there_is_no_report_about_a_grid_without_a_ranking_alone(
    tmp_path: Path, why_refused: Callable[..., str]
) -> None:
    (tmp_path / "young" / "grid" / "points").mkdir(parents=True)
    (tmp_path / "young" / "grid" / "points" / "control-seed0.failure.json").write_text("{}")
    assert "no study and no grid with a ranking" in why_refused(tmp_path / "young")


def test_only_a_report_is_overwritten(copy: Path, tmp_path: Path, why_refused: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    said = why_refused(copy, out=tmp_path / "file")
    assert "file exists and is no report; choose another out" in said
    assert "exists and is no report" in why_refused(copy, out=tmp_path / "empty")


def test_a_report_that_cannot_be_written_is_told(copy: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused("report", copy, "--out", tmp_path / "file" / "report.html")


def test_a_broken_file_of_results_is_named(copy: Path, why_refused: Callable[..., str]) -> None:
    (copy / "held_out" / "broken.json").write_text("{")
    assert "broken.json is not JSON" in why_refused(copy)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("control/metrics.jsonl", '{"loss": 1}', "is damaged: metrics.jsonl has 11 bytes where"),
        ("control/result.json", '{"parameters": 3}', "result.json was changed since it was written"),
        ("control/config.yaml", "a: 1", "is damaged: config.yaml has 4 bytes where"),
        ("held_out/x.json", '{"suites": [1]}', "x.json holds no results of `palenka eval`"),
        ("seconds.json", '{"corpus": "long"}', "seconds.json was changed since it was written"),
    ],
)
def test_a_damaged_file_is_named(copy: Path, file: str, content: str, said: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        find_sources([copy])


def test_without_its_packages_one_sentence_says_what_to_install(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    out = tmp_path / "report.html"
    assert main(["report", str(study), "--out", str(out)]) == 2
    sentence = "a report needs jinja2 and matplotlib, not installed here; pip install 'palenka[report]'"
    assert capsys.readouterr().err == f"error: {sentence}\n"
    try_report([study], out)  # as studies and grids end
    assert capsys.readouterr().err.endswith(f"{out} is not written: {sentence}\n")
    assert not out.exists()


@pytest.mark.slow
def test_only_the_report_imports_the_packages_of_its_extra() -> None:
    code = """
import sys
import transformers
sys.modules |= dict.fromkeys(("markupsafe", "matplotlib"))  # torch itself needs jinja2
import palenka.__main__, palenka.demo, palenka.grid.__main__, palenka.report.__main__, palenka.study
"""
    subprocess.run([sys.executable, "-c", code], check=True)
