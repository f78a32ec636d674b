"""Export: the student alone, loadable anywhere."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.store import read_manifest
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import SuiteResult, read_results
from palenka.eval.suite import Conditions
from palenka.export import main
from palenka.ground.command_line import USER_MISTAKE
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


@pytest.fixture(scope="module")
def finished(
    settings_of_capture: Callable[..., CaptureSettings],
    settings_of_run: Callable[..., TrainSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A short run with a hidden term, of a cache beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    capture(settings_of_capture(output=folder / "cache", hidden={"positions": 2}))
    teachers, objective = {"t": {"cache": folder / "cache"}}, {"hidden": 0.3}
    settings = settings_of_run(
        output=folder / "run", fraction=0.05, teachers=teachers, objective=objective, checkpoint_every=1
    )
    train(settings)
    return settings.output


def test_an_export_is_the_model_and_its_tokenizer_without_projections(finished: Path, tmp_path: Path) -> None:
    assert (finished / "projections.safetensors").is_file()
    assert main([str(finished), "--out", str(tmp_path / "exported")]) == 0
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    kept, exported = (load_file(place / "model.safetensors") for place in (finished, tmp_path / "exported"))
    assert kept.keys() == exported.keys()
    assert all(torch.equal(kept[name], exported[name]) for name in kept)
    assert AutoTokenizer.from_pretrained(tmp_path / "exported")("the teacher").input_ids


def test_an_export_in_another_type_is_rounded_once(finished: Path, tmp_path: Path) -> None:
    assert main([str(finished), "--out", str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    exact = load_file(finished / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, exact[name].bfloat16())


def test_a_tokenizer_can_open_texts_by_itself(finished: Path, tmp_path: Path) -> None:
    ids = []
    for name, choice in (("plain", "false"), ("opened", "true")):
        assert main([str(finished), "--out", str(tmp_path / name), "--add_bos", choice]) == 0
        ids.append(AutoTokenizer.from_pretrained(tmp_path / name)("the teacher").input_ids)
    assert ids[1] == [1, *ids[0]]


@dataclass(frozen=True)
class Exported:
    """The card of an export, and the result that was exported with it."""

    card: Any
    result: SuiteResult


@pytest.fixture(scope="module")
def exported(finished: Path, corpus_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run, measured on held-out text and exported under a name that Markdown would read as its own."""
    folder = tmp_path_factory.mktemp("exported")
    measured, out = folder / "measured.json", folder / "a|b_c"
    measure(Measurement(finished, {"held_out": corpus_directory}, Conditions(length=16)), measured)
    assert main([str(finished), "--out", str(out), "--results", str(measured), "--license", "cc-by-4.0"]) == 0
    return Exported(ModelCard.load(out / "README.md"), read_results(measured).suites[0])


def test_the_hub_reads_licence_library_and_tags_of_the_card(exported: Exported) -> None:
    data = exported.card.data
    assert data.license == "cc-by-4.0"
    assert data.library_name == "transformers"
    assert data.tags == ["palenka", "knowledge-distillation"]


def test_the_hub_reads_the_results_of_the_card(exported: Exported) -> None:
    (entry,) = exported.card.data.eval_results
    assert (entry.dataset_type, entry.metric_type) == ("held_out", "cross_entropy")
    assert entry.metric_value == pytest.approx(exported.result.main.value, abs=1e-4)


def test_the_name_of_a_model_is_escaped_in_the_heading_alone(exported: Exported) -> None:
    assert exported.card.data.model_name == "a|b_c"
    assert exported.card.text.lstrip().startswith(r"# a\|b\_c")


def test_the_card_has_the_result_with_its_interval_and_conditions(exported: Exported) -> None:
    result = exported.result
    low, high = result.main.interval or (0.0, 0.0)
    under = ", ".join(f"{name} {value}" for name, value in result.conditions.items())
    assert "length 16" in under
    assert f"{result.main.value:.4g} nats per token | {low:.4g} to {high:.4g} | {under} |" in exported.card.text


def test_the_card_says_what_the_corpus_holds(exported: Exported, corpus: Corpus) -> None:
    assert f"{corpus.counts.words:,} words" in exported.card.text
    assert "| `switchboard.train` |" in exported.card.text


def test_the_card_has_the_size_and_the_words_read_of_the_run(exported: Exported, finished: Path) -> None:
    record = json.loads((finished / "result.json").read_text())
    assert f"{record['parameters']:,} parameters" in exported.card.text
    read, words = f"{record['words']['read']:,}", f"{record['words']['corpus_words']:,}"
    said = f"of a corpus of {words} words the model read 5 % of it in 1 epoch, {read} words in all"
    assert said in exported.card.text


def test_the_card_names_the_teacher_by_its_weights(exported: Exported, finished: Path) -> None:
    assert "distilled from 1 teacher" in exported.card.text
    manifest = read_manifest(finished.with_name("cache"))
    assert manifest.teachers["teacher"].weights[:12] in exported.card.text


def test_the_tables_of_the_card_are_whole(exported: Exported) -> None:
    parts = exported.card.text.split("\n\n")
    tables = [lines for part in parts if (lines := part.splitlines()) and lines[0].startswith("|")]
    assert tables
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) == {"|", " ", "-"}


def test_without_a_licence_the_card_says_so(finished: Path, tmp_path: Path) -> None:
    assert main([str(finished), "--out", str(tmp_path / "plain")]) == 0
    card = ModelCard.load(tmp_path / "plain" / "README.md")
    assert card.data.license is None
    assert "No licence was chosen" in card.text
    assert "No suite was given" in card.text


def test_results_of_another_model_are_refused(
    finished: Path, teacher: Path, corpus_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    measure(Measurement(teacher, {"held_out": corpus_directory}, Conditions(length=16)), other)
    assert main([str(finished), "--out", str(tmp_path / "x"), "--results", str(other)]) == USER_MISTAKE
    assert "give results of the model that is exported" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_exported_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "x")]) == USER_MISTAKE
    assert "is not a finished run" in capsys.readouterr().err
    assert main([str(finished), "--out", str(finished)]) == USER_MISTAKE
    assert "exists; delete it or choose another --out" in capsys.readouterr().err
    assert main([str(finished)]) == USER_MISTAKE
    assert "these options are missing: out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_revisions(settings_of_run: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that kept two revisions; not to be changed."""
    settings = settings_of_run(output=tmp_path_factory.mktemp("kept") / "run", fraction=0.1, revisions=[100, 300])
    train(settings)
    return settings.output


def test_revisions_are_exported_as_a_folder_for_each_branch(with_revisions: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    assert main([str(with_revisions), "--revisions", "--add_bos", "true", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"main", "chck_100", "chck_300"}
    for branch, place in (
        ("main", with_revisions),
        *((name, with_revisions / "revisions" / name) for name in ("chck_100", "chck_300")),
    ):
        assert AutoTokenizer.from_pretrained(out / branch)("the teacher").input_ids[0] == 1
        kept, exported = (load_file(each / "model.safetensors") for each in (place, out / branch))
        assert all(torch.equal(kept[name], exported[name]) for name in kept)
        assert not (out / branch / "model.commit.json").exists()


def test_a_run_without_revisions_or_with_a_damaged_one_is_not_exported(
    finished: Path, with_revisions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(finished), "--revisions", "--out", str(tmp_path / "hub")]) == USER_MISTAKE
    assert "has no revisions; they are kept while a run trains" in " ".join(capsys.readouterr().err.split())
    damaged = Path(shutil.copytree(with_revisions, tmp_path / "damaged"))
    weights = damaged / "revisions" / "chck_300" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert main([str(damaged), "--revisions", "--out", str(tmp_path / "hub")]) == USER_MISTAKE
    assert "chck_300 is damaged: model.safetensors" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "hub").exists()


class Hub:
    """The Hub as its client sees it: what was asked of it, in order."""

    calls: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, token: str) -> None:
        self.token = token

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("repository", self.token, name, f"{private=} {exist_ok=}"))

    def create_branch(self, name: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append(("branch", name, branch, f"{exist_ok=}"))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str, commit_message: str) -> None:
        if revision == "chck_300" and self.token == "expired":
            raise OSError("401 Unauthorized.\nmore")
        files = ",".join(sorted(path.name for path in folder_path.iterdir() if path.is_file()))
        self.calls.append(("upload", repo_id, revision, files))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[tuple[str, ...]]]:
    """Puts `Hub` in the place of the client, with a token or none; gives what will be asked of it."""

    def connect(token: str | None) -> list[tuple[str, ...]]:
        monkeypatch.setattr("huggingface_hub.HfApi", Hub)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        calls: list[tuple[str, ...]] = []
        monkeypatch.setattr(Hub, "calls", calls)
        return calls

    return connect


Connect = Callable[[str | None], list[tuple[str, ...]]]


def test_without_a_token_nothing_is_written_or_sent(
    with_revisions: Path, tmp_path: Path, hub: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, out = hub(None), tmp_path / "none"
    assert main([str(with_revisions), "--revisions", "--push", "org/name", "--out", str(out)]) == USER_MISTAKE
    assert "there is no token for the Hugging Face Hub" in " ".join(capsys.readouterr().err.split())
    assert (calls, out.exists()) == ([], False)


def test_each_folder_is_sent_to_its_branch(
    with_revisions: Path, tmp_path: Path, hub: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, out = hub("secret"), tmp_path / "hub"
    assert main([str(with_revisions), "--revisions", "--push", "org/name", "--out", str(out)]) == 0
    files = "config.json,generation_config.json,model.safetensors,tokenizer.json,tokenizer_config.json"
    assert calls == [
        ("repository", "secret", "org/name", "private=True exist_ok=True"),
        ("branch", "org/name", "chck_100", "exist_ok=True"),
        ("upload", "org/name", "chck_100", files),
        ("branch", "org/name", "chck_300", "exist_ok=True"),
        ("upload", "org/name", "chck_300", files),
        ("upload", "org/name", "main", f"README.md,{files}"),
    ]
    said = capsys.readouterr()
    assert "sent to https://huggingface.co/org/name" in said.out
    assert "secret" not in said.out + said.err


def test_a_branch_that_cannot_be_sent_is_named_and_what_was_exported_is_kept(
    with_revisions: Path, tmp_path: Path, hub: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    hub("expired")
    out = tmp_path / "cut-off"
    assert main([str(with_revisions), "--revisions", "--push", "org/name", "--out", str(out)]) == USER_MISTAKE
    assert "branch chck_300 of org/name cannot be sent" in " ".join(capsys.readouterr().err.split())
    assert (out / "main" / "model.safetensors").is_file()


def test_a_name_without_an_owner_is_no_place_to_send_to(with_revisions: Path, tmp_path: Path, hub: Connect) -> None:
    hub("secret")
    assert main([str(with_revisions), "--push", "name alone", "--out", str(tmp_path / "x")]) == USER_MISTAKE


def test_a_push_that_failed_is_repeated_and_sends_what_was_exported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreachable(Hub):
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            raise HTTPError(f"{name}: no route to host")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("huggingface_hub.HfApi", Unreachable)
    monkeypatch.setattr(Hub, "calls", [])
    words = [str(finished), "--out", str(tmp_path / "hub"), "--push", "org/name"]
    assert main(words) == USER_MISTAKE
    told = " ".join(capsys.readouterr().err.split())
    assert "(org/name: no route to host); what was exported is kept: run the same command again" in told
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "hub").iterdir()}
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert main(words) == 0
    assert [call[0] for call in Hub.calls] == ["repository", "upload"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "hub").iterdir()} == written
    assert main([*words, "--dtype", "bf16"]) == USER_MISTAKE
    assert "hub exists and is not what this command exports" in " ".join(capsys.readouterr().err.split())
    assert len(Hub.calls) == 2


def test_a_run_whose_weights_were_deleted_is_not_exported(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Path(shutil.copytree(finished, tmp_path / "lost"))
    (lost / "model.safetensors").unlink()
    assert main([str(lost), "--out", str(tmp_path / "hub")]) == USER_MISTAKE
    assert "has no weights: model.safetensors was deleted" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "hub").exists()
