"""The stages for fault tests: each a command with its inputs and outputs, on a small artificial text.

What a stage made is compared file by file, without the times that records tell.
"""

import json
import random
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_calls import Launch, call

TIMES = (
    "seconds",
    "tokens_per_second",
    "data_wait",
    "checksum",
    "sha256",
    "bytes",
    "state",
    "metrics",
    "meter",
    "path",
)
"""Names in records whose values differ from call to call or place to place, or are checksums of such."""
SAID_OF_TIMES = (
    *("result.json", "results.json", "state.json", "commit.json", "files.json", "metrics.jsonl", "config.yaml"),
)
OF_ONE_CALL = ("calls.jsonl", "seconds.json")
"""Files about the calls themselves, which are others in a run that was interrupted."""
WORDS = (
    *("the", "a", "child", "dog", "bird", "sees", "finds", "follows", "red"),
    *("small", "old", "river", "garden", "stone", "and", "or", "but", "not"),
)
ENCODINGS = {
    "low_rank": {"k": 4, "rank": 4},
    "topk": {"k": 6},
    "sampled": {"draws": 8},
    "hybrid": {"k": 4, "draws": 4},
}
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "hard": {},
    "logit": {"hard": 0.5, "logit": 0.5},
    "reverse": {"hard": 0.5, "logit": 0.5, "divergence": "reverse"},
    "js": {"hard": 0.5, "logit": 0.5, "divergence": "js"},
    "hidden": {"hard": 0.5, "hidden": 0.5},
    "contrastive": {"hard": 0.5, "contrastive": 0.5},
    "auxiliary": {"hard": 0.5, "auxiliary": 0.5},
}
NOT_DAMAGED = ("pairs", "download")
"""Data of suites: it is hashed with each measurement, and may be others each time."""
TWO_PROCESSES = (
    *("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
    *("--dynamo_backend", "no", "--main_process_port", "0", "-m", "palenka.train_student"),
)


@dataclass(frozen=True)
class Stage:
    """A command that makes something.

    Attributes:
        name: of the stage.
        arguments: of `palenka`; OUT stands for what it makes.
        out: the name of what it makes, in the workshop.
        reads: the names of what it reads, in the workshop.
        launched: has processes of its own, and is started as a user does.
    """

    name: str
    arguments: tuple[str, ...]
    out: str
    reads: tuple[str, ...]
    launched: bool = False

    def made_at(self, place: Path) -> list[str]:
        """The arguments that make it at a place."""
        return [word.replace("OUT", str(place)) for word in self.arguments]

    def command_at(self, place: Path) -> list[str]:
        """What a user types to make it at a place."""
        first, *rest = self.made_at(place)
        if first == "launch":
            return [str(Path(sys.executable).parent / TWO_PROCESSES[0]), *TWO_PROCESSES[1:], *rest]
        return [sys.executable, "-m", "palenka", first, *rest]


@dataclass
class Workshop:
    """A folder with text, and everything that is made of it."""

    folder: Path
    stages: list[Stage] = field(default_factory=list)

    @classmethod
    def made(cls, folder: Path) -> "tuple[Workshop, dict[str, float]]":
        """A new one with all stages that run in one process, and their seconds by what they make."""
        shutil.rmtree(folder, ignore_errors=True)
        workshop = cls(folder)
        workshop.write_text()
        workshop.plan()
        workshop.stages = [stage for stage in workshop.stages if not stage.launched]
        return workshop, workshop.make_everything()

    def launches(self) -> "list[Stage]":
        """The stages with processes of their own; their files of settings are there."""
        whole = Workshop(self.folder)
        whole.plan()
        return [stage for stage in whole.stages if stage.launched]

    def at(self, name: str) -> Path:
        """Where something is."""
        return self.folder / name

    def write_text(self) -> None:
        """Text, minimal pairs, and what a BabyLM download has."""
        draw = random.Random(7)
        self.at("text").mkdir(parents=True)
        for split, count in (("train", 700), ("dev", 200)):
            lines = [" ".join(draw.choices(WORDS, k=draw.randrange(4, 12))) + " ." for _ in range(count)]
            (self.at("text") / f"childes.{split}").write_text("\n".join(lines) + "\n")
        pairs = [
            {"sentence_good": f"the {noun} sees the river .", "sentence_bad": f"the the {noun} sees river ."}
            for noun in ("child", "dog", "bird", "stone") * 5
        ]
        entailed = [
            {"sentence1": f"the {noun} sees the river .", "sentence2": f"the {noun} sees .", "label": number % 2}
            for number, noun in enumerate(("child", "dog", "bird", "stone") * 5)
        ]
        rows: dict[str, list[dict[str, Any]]] = {
            "pairs/order": pairs,
            "download/full_eval/blimp_filtered/order": pairs,
            "download/full_eval/glue_filtered/rte.train": entailed,
            "download/full_eval/glue_filtered/rte.valid": entailed,
            "download/fast_eval/blimp_fast/order": pairs[:8],
        }
        for name, content in rows.items():
            path = self.at(f"{name}.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in content))

    def plan(self) -> None:
        """All stages, each after what it reads."""
        run = self._plan_models()
        self._plan_measures()
        self._plan_pages(run)

    def make_everything(self) -> dict[str, float]:
        """Call all stages undisturbed; returns their seconds by what they make."""
        seconds = {}
        for stage in self.stages:
            place = self.at(stage.out)
            ended = Launch(stage.command_at(place), place).end() if stage.launched else call(stage.made_at(place))
            if ended.status != 0:
                raise RuntimeError(f"{stage.name}: {ended.status}\n{ended.said}")
            seconds[stage.out] = ended.seconds
        return seconds

    def _plan_models(self) -> dict[str, Any]:
        """Corpus, teacher, caches and students; returns what the settings of runs share."""
        corpus, teacher, cache = (str(self.at(name)) for name in ("corpus", "teacher", "cache-topk"))
        text = str(self.at("text"))
        self._add("prepare", "corpus", ("text",), "data", "prepare", "--sources", text, "--vocabulary_size", "300")
        run = {
            "corpus": corpus,
            "model": {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
            "windows": {"length": 16},
            "global_batch": 16,
            "micro_batch": 16,
            "validation": {"every": 5, "windows": 20},
            "checkpoint_every": 4,
            "log_every": 3,
            "device": "cpu",
        }
        self._add("train", "teacher", ("corpus",), "train", self._file("teacher", run), "--epochs", "2")
        capture = {"corpus": corpus, "teacher": teacher, "windows": {"length": 16}, "device": "cpu"}
        for kind, fields in ENCODINGS.items():
            more: dict[str, Any] = {"logits": {"kind": kind, "temperatures": [1.0], **fields}}
            more |= {"hidden": {"positions": 4, "sample_windows": 32}} if kind == "topk" else {}
            file = self._file(f"cache-{kind}", capture | more)
            self._add(f"capture {kind}", f"cache-{kind}", ("corpus", "teacher"), "cache", "run", file)
        for name, objective in OBJECTIVES.items():
            given = {"teachers": {"t": {"cache": cache}}, "objective": {"temperature": 1.0, **objective}}
            given = given if objective else {}
            out = "student" if name == "hidden" else f"student-{name}"
            more = {"revisions": [500, 1500, 3000]} if name == "hidden" else {}
            reads = ("corpus", "cache-topk") if objective else ("corpus",)
            self._add(f"train {name}", out, reads, "train", self._file(out, run | given | more | {"seed": 3}))
        launched = self._file("launched", run | {"micro_batch": 8, "seed": 3})
        self._add("two processes", "launched", ("corpus",), "launch", launched, launched=True)
        return run

    def _plan_measures(self) -> None:
        """Figures, predictions, curves, comparisons, tables and samples."""
        corpus, pairs, download = (str(self.at(name)) for name in ("corpus", "pairs", "download"))
        measured = ("--suite", "held_out", "minimal_pairs", "--data.held_out", corpus, "--device", "cpu")
        options = (*measured, "--data.minimal_pairs", pairs, "--length", "16", "--out", "OUT/figures.json")
        for name in ("student", "teacher"):
            self._add("eval", f"measured-{name}", (name, "corpus", "pairs"), "eval", str(self.at(name)), *options)
        student, more = str(self.at("student")), ("--babylm", download, "--device", "cpu", "--out")
        glue = ("--limit", "12", "--seeds", "1", "2")
        reads = ("student", "download")
        self._add("eval --babylm", "submission", reads, "eval", student, *glue, *more, "OUT/submission.json")
        self._add("eval --revisions", "curve", reads, "eval", student, "--revisions", *more, "OUT/curve.json")
        files = [str(self.at(f"measured-{name}") / "figures.json") for name in ("student", "teacher")]
        two = ("measured-student", "measured-teacher")
        self._add("compare", "comparison", two, "eval", "compare", *files, "--out", "OUT/comparison.json")
        self._add("table", "table", two, "eval", "export", *files, "--out", "OUT/table.md")
        prompts = ("--prompt", "the dog", "a bird", "--tokens", "8", "--device", "cpu", "--out", "OUT/samples.json")
        self._add("generate", "samples", ("student",), "generate", student, *prompts)

    def _plan_pages(self, run: Mapping[str, Any]) -> None:
        """Exports, the page, grids and a study."""
        student, figures = str(self.at("student")), str(self.at("measured-student") / "figures.json")
        self._add("export", "exported", ("student",), "export", student)
        card = ("--revisions", "--results", figures, "--license", "mit")
        self._add("export --revisions", "branches", ("student", "measured-student"), "export", student, *card)
        distilled = {"teachers": {"t": {"cache": str(self.at("cache-topk"))}}, "objective": {"temperature": 1.0}}
        self._file("grid-student", {**run, **distilled, "output": "x", "fraction": 0.3})
        grid = {
            "student": "grid-student.yaml",
            "product": {"objective.logit": [0.2, 0.8]},
            "finalists": {"count": 0},
            "local": {"isolated": False},
            "held_out_windows": 20,
        }
        both = ("corpus", "cache-topk")
        self._add("grid", "grid", both, "grid", self._file("grid", grid))
        several = grid | {"local": {"processes": 2}}
        self._add("grid of processes", "points", both, "grid", self._file("points", several), launched=True)
        # Stages of a study by themselves are those above; here all but the measures is finished.
        outputs = ("corpus", "teacher", "cache-topk", "student", "student-hard")
        for name in outputs:
            content = {} if name == "corpus" else json.loads(self.at(f"{name}.yaml").read_text())
            of_corpus = {"sources": str(self.at("text")), "vocabulary_size": 300} if name == "corpus" else {}
            epochs = {"epochs": 2} if name == "teacher" else {}
            self._file(f"study-{name}", content | of_corpus | epochs | {"output": str(self.at(name))})
        study = {
            "corpus": "study-corpus.yaml",
            "teachers": {"teacher": "study-teacher.yaml"},
            "caches": {"cache": "study-cache-topk.yaml"},
            "students": {"student": "study-student.yaml", "control": "study-student-hard.yaml"},
            "suites": {"minimal_pairs": str(self.at("pairs"))},
            "prompts": ["the dog"],
        }
        self._add("study", "study", outputs, "study", self._file("study", study))
        # Last, for the study has measured how far the cache is from its teacher.
        reads = ("student", "measured-student", "measured-teacher", "submission", "curve", "samples", "cache-topk")
        self._add("report", "page", reads, "report", *(str(self.at(name)) for name in reads), "--out", "OUT/page.html")

    def _file(self, name: str, content: Mapping[str, Any]) -> str:
        """A file of settings (JSON is YAML)."""
        path = self.at(f"{name}.yaml")
        path.write_text(json.dumps(content))
        return str(path)

    def _add(self, name: str, out: str, reads: tuple[str, ...], *arguments: str, launched: bool = False) -> None:
        given = " ".join(arguments)
        last = () if "OUT" in given else ("--out", "OUT") if arguments[0] == "export" else ("--output", "OUT")
        self.stages.append(Stage(name, (*arguments, *last), out, reads, launched))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file by its path; of records that tell times, without these."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _content(path) for name, path in found.items() if not _tells_of_calls(name)}


def _tells_of_calls(name: str) -> bool:
    """Logs, a cache's errors that were measured later, and the pages of grids and studies, which tell seconds."""
    return name.startswith("logs/") or name in ("report.html", "commits/fidelity.json")


def _content(path: Path) -> bytes:
    content = b"" if path.name in OF_ONE_CALL else path.read_bytes()
    if path.name == "config.yaml":
        return re.sub(rb"(?m)^output:.*$", b"", content)
    if path.name not in SAID_OF_TIMES:
        return content
    try:
        return "\n".join(json.dumps(_timeless(json.loads(line))) for line in _records(path, content)).encode()
    except ValueError:  # it is damaged
        return content


def _records(path: Path, content: bytes) -> list[str]:
    text = content.decode()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _timeless(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES}
    return [*map(_timeless, value)] if isinstance(value, list) else value
