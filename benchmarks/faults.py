"""Every stage under fire: killed at random moments, and with files damaged that it wrote or was given.

    python benchmarks/faults.py --folder FOLDER --kills 10 --damages 1000 --record benchmarks/records/faults.md

Each command is a process of its own, forked from this one once torch is loaded, so that thousands fit into minutes.

Kills: a stage is killed with SIGKILL at a random moment of its time, and called again. Its files must then be those of
an undisturbed call, times excluded, with nothing beside them and no process left. Damage: a file that Palenka wrote, or
an input that it hashed, is flipped, cut, deleted, zeroed or swapped with one of its kind, between commands or while one
runs; every command that reads it is called. It must refuse (status 2, one sentence) or come to the same files. What is
done is kept in FOLDER/done.jsonl, and the same call goes on with what is left.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from palenka.__main__ import main as palenka

_BEFORE_THE_FORKS = (
    *("matplotlib.pyplot", "pyarrow.compute", "pyarrow.parquet", "transformers.models.llama.modeling_llama", "zarr"),
    *("palenka.data.text.prepare", "palenka.cache_teachers.capture", "palenka.train_student.train", "palenka.export"),
    *("palenka.eval.__main__", "palenka.eval.measure", "palenka.eval.compare", "palenka.eval.tables"),
    *("palenka.report.page", "palenka.grid.__main__", "palenka.grid.running", "palenka.grid.results"),
)
LIMIT_SECONDS = 120
TIMES = ("seconds", "tokens_per_second", "data_wait", "checksum", "sha256", "bytes", "state", "metrics", "meter")
"""Names in records whose values differ from call to call, or are checksums of such."""
SAID_OF_TIMES = ("result.json", "state.json", "commit.json", "metrics.jsonl", "config.yaml")
WORDS = [
    "the",
    "a",
    "child",
    "dog",
    "bird",
    "sees",
    "finds",
    "follows",
    "red",
    "small",
    "old",
    "river",
    "garden",
    "stone",
    "and",
    "or",
    "but",
    "not",
]
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


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status (None where it was killed, or took too long), what it said, its seconds."""

    status: int | None
    said: str
    seconds: float


def call(
    arguments: Sequence[str], meanwhile: Callable[[], None] | None = None, kill_after: float | None = None
) -> Ended:
    """A command in a process of its own."""
    read, write = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        for number in (1, 2):
            os.dup2(write, number)
        ending = 70
        with contextlib.suppress(BaseException):
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            try:
                ending = palenka(list(arguments))
            except SystemExit as end:
                ending = int(end.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
                ending = 71
            sys.stdout.flush()
        os._exit(ending)
    os.close(write)
    with contextlib.suppress(OSError):  # whoever comes first: the child, or its parent
        os.setpgid(child, child)
    if meanwhile is not None:
        meanwhile()
    limit = LIMIT_SECONDS if kill_after is None else kill_after
    said = b""
    os.set_blocking(read, False)
    status: int | None = None
    while True:
        with contextlib.suppress(BlockingIOError):
            said += os.read(read, 2**16)
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        if time.perf_counter() - began > limit:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(read, 2**16):
            said += part
    os.close(read)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, 0)
        raise RuntimeError(f"a process of {arguments} lives on")
    return Ended(status, said.decode(errors="replace"), time.perf_counter() - began)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file by its path; of records that tell times, without these."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not (path.parent / "grid.json").exists())
    paths += [path for path in [folder / "grid.json"] if path.exists()]  # beside it lies a page that tells times
    return {str(path.relative_to(folder)): _content(path) for path in paths}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
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
    return value


@dataclass(frozen=True)
class Stage:
    """A command that makes something.

    Attributes:
        name: of the stage.
        arguments: of the command; OUT stands for what it makes.
        out: the name of what it makes, in the workshop.
        reads: the names of what it reads, in the workshop.
    """

    name: str
    arguments: tuple[str, ...]
    out: str
    reads: tuple[str, ...]

    def made_at(self, place: Path) -> list[str]:
        """The arguments that make it at a place."""
        return [word.replace("OUT", str(place)) for word in self.arguments]


@dataclass
class Workshop:
    """A folder with text, and everything that is made of it."""

    folder: Path
    stages: list[Stage] = field(default_factory=list)

    def file(self, name: str, content: Mapping[str, Any]) -> str:
        """A file of settings (JSON is YAML)."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(content))
        return str(path)

    def write_text(self) -> None:
        """Text, and minimal pairs."""
        draw = random.Random(7)
        for name in ("text", "pairs"):
            (self.folder / name).mkdir(parents=True)
        for split, count in (("train", 700), ("dev", 200)):
            lines = [" ".join(draw.choices(WORDS, k=draw.randrange(4, 12))) + " ." for _ in range(count)]
            (self.folder / "text" / f"childes.{split}").write_text("\n".join(lines) + "\n")
        pairs = [
            {"sentence_good": f"the {noun} sees the river .", "sentence_bad": f"the the {noun} sees river ."}
            for noun in ("child", "dog", "bird", "stone") * 5
        ]
        (self.folder / "pairs" / "order.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def plan(self) -> None:
        """All stages, each after what it reads."""
        at = {name: str(self.folder / name) for name in ("text", "pairs", "corpus", "teacher", "cache-topk", "student")}
        self._add(
            "prepare", "corpus", ("text",), "data", "prepare", "--sources", at["text"], "--vocabulary_size", "300"
        )
        run = {
            "corpus": at["corpus"],
            "model": {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
            "windows": {"length": 16},
            "global_batch": 16,
            "micro_batch": 16,
            "validation": {"every": 5, "windows": 20},
            "checkpoint_every": 4,
            "log_every": 3,
            "device": "cpu",
        }
        self._add("train", "teacher", ("corpus",), "train", self.file("teacher", run), "--epochs", "2")
        capture = {"corpus": at["corpus"], "teacher": at["teacher"], "windows": {"length": 16}, "device": "cpu"}
        for kind, fields in ENCODINGS.items():
            more = {"logits": {"kind": kind, "temperatures": [1.0], **fields}}
            more |= {"hidden": {"positions": 4, "sample_windows": 32}} if kind == "topk" else {}
            file = self.file(f"cache-{kind}", capture | more)
            self._add(f"capture {kind}", f"cache-{kind}", ("corpus", "teacher"), "cache", "run", file)
        for name, objective in OBJECTIVES.items():
            teachers = {"teachers": {"t": {"cache": at["cache-topk"]}}} if objective else {}
            given = {"objective": {"temperature": 1.0, **objective}} if objective else {}
            out = "student" if name == "hidden" else f"student-{name}"
            reads = ("corpus", "cache-topk") if objective else ("corpus",)
            self._add(f"train {name}", out, reads, "train", self.file(out, run | teachers | given | {"seed": 3}))
        measured = ("--suite", "held_out", "minimal_pairs", "--data.held_out", at["corpus"], "--device", "cpu")
        pairs = ("--data.minimal_pairs", at["pairs"], "--length", "16")
        for name in ("student", "teacher"):
            folder = f"measured-{name}"
            self._add(
                "eval",
                folder,
                (name, "corpus", "pairs"),
                "eval",
                at[name],
                *measured,
                *pairs,
                "--out",
                "OUT/figures.json",
            )
        files = [str(self.folder / f"measured-{name}" / "figures.json") for name in ("student", "teacher")]
        reads = ("measured-student", "measured-teacher")
        self._add("compare", "comparison", reads, "eval", "compare", *files, "--out", "OUT/comparison.json")
        self._add("table", "table", reads, "eval", "export", *files, "--out", "OUT/table.md")
        self._add("export", "exported", ("student",), "export", at["student"])
        self._add("report", "page", ("student", *reads), "report", at["student"], *map(str, map(self.at, reads)))
        distilled = {"teachers": {"t": {"cache": at["cache-topk"]}}, "objective": {"temperature": 1.0}}
        self.file("grid-student", run | distilled | {"output": "x", "fraction": 0.3})
        grid = {
            "student": "grid-student.yaml",
            "product": {"objective.logit": [0.2, 0.8]},
            "finalists": {"count": 0},
            "local": {"isolated": False},
            "held_out_windows": 20,
        }
        self._add("grid", "grid", ("corpus", "cache-topk"), "grid", self.file("grid", grid))

    def at(self, name: str) -> Path:
        """Where something is."""
        return self.folder / name

    def _add(self, name: str, out: str, reads: tuple[str, ...], *arguments: str) -> None:
        given = " ".join(arguments)
        last = () if "OUT" in given else ("--out", "OUT") if arguments[0] == "export" else ("--output", "OUT")
        last = ("--out", "OUT/report.html") if arguments[0] == "report" else last
        self.stages.append(Stage(name, (*arguments, *last), out, reads))

    def make_everything(self) -> dict[str, float]:
        """Call all stages undisturbed; returns their seconds by what they make."""
        seconds = {}
        for stage in self.stages:
            ended = call(stage.made_at(self.at(stage.out)))
            if ended.status != 0:
                raise RuntimeError(f"{stage.name}: {ended.status}\n{ended.said}")
            seconds[stage.out] = ended.seconds
        return seconds


def beside(place: Path) -> list[str]:
    """What lies beside something that was made, and should not."""
    return [path.name for path in place.parent.iterdir() if path != place]


def kill(workshop: Workshop, stage: Stage, seconds: float, draw: random.Random) -> dict[str, Any]:
    """One kill, and the call that goes on."""
    trial = workshop.folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir()
    place = trial / "out"
    arguments = stage.made_at(place)
    moment = draw.uniform(0.05, 1.0) * seconds
    killed = call(arguments, kill_after=moment)
    ended = call(arguments)
    expected, found = files_of(workshop.at(stage.out)), files_of(place) if place.exists() else {}
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    outcome = "same"
    is_there = stage.name == "export" and "exists; delete it" in ended.said  # it was whole when the signal came
    if ended.status != 0 and not is_there:
        outcome = f"status {ended.status}: {ended.said[-400:]}"
    elif differ:
        outcome = f"other files: {differ[:4]}"
    elif left := beside(place):
        outcome = f"left behind: {left}"
    return {"kind": "kill", "stage": stage.name, "hit": killed.status is None, "outcome": outcome}


WAYS = ("flip", "cut", "delete", "zero", "swap")


def damage(path: Path, way: str, others: Sequence[Path], draw: random.Random) -> bool:
    """Damage a file; False where it would be as before."""
    content = path.read_bytes()
    if way == "delete":
        path.unlink()
        return True
    if way == "flip":
        changed = bytearray(content)
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        new = bytes(changed)
    elif way == "cut":
        new = content[: draw.randrange(len(content))] if content else content
    elif way == "zero":
        new = bytes(len(content))
    else:
        alike = [other for other in others if other.name == path.name and other != path]
        new = draw.choice(alike).read_bytes() if alike else content
    if draw.random() < 0.5:
        path.write_bytes(new)
    else:
        aside = path.with_name("aside")
        aside.write_bytes(new)
        aside.replace(path)
    return new != content


def outcome_of(stage: Stage, ended: Ended, named: bool, sentences: int) -> str | None:
    """How a command met a damage: refused (by the file's name), or badly; None if it ended well."""
    refused = "refused by name" if named else "refused"
    if ended.status == 1 and stage.out == "grid" and " failed: " in ended.said:
        return refused
    if "Traceback" in ended.said or ended.status not in (0, 2):
        return f"status {ended.status}: {ended.said[-400:]}"
    if ended.status == 2:
        return refused if sentences == 1 else f"{sentences} sentences"
    return None


def compared(file: str, expected: Mapping[str, Any], found: Mapping[str, Any], again: bool) -> str:
    """Whether what a command made in spite of a damaged file is what an undisturbed one makes."""
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    # Nobody reads the checkpoints of a run that is finished.
    differ = [name for name in differ if not (again and "checkpoints/" in name)]
    return f"ACCEPTED {file}: {differ[:4]}" if differ else "same files"


def harm(workshop: Workshop, draw: random.Random, all_files: Sequence[Path]) -> dict[str, Any] | None:
    """One damage, and a command that reads what was damaged."""
    stage = draw.choice(workshop.stages)
    # Text was hashed by the corpus that is there; pairs are hashed with each measurement, and may be others each time.
    again = draw.random() < 0.4 or stage.out == "corpus"
    reads = [name for name in stage.reads if name != "pairs"]
    sources = [workshop.at(name) for name in ([stage.out, *({"text"} & {*reads})] if again else reads)]
    victims = [path for path in all_files if any(path.is_relative_to(source) for source in sources)]
    victim = draw.choice(victims)
    before = victim.read_bytes()
    state = victim.stat()
    way, while_running = draw.choice(WAYS), draw.random() < 0.2
    trial = workshop.folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir()
    place = workshop.at(stage.out) if again else trial / "out"
    whole = trial / "whole"
    if again:
        shutil.copytree(place, whole)
    changed = True

    def strike() -> None:
        nonlocal changed
        time.sleep(draw.random() * 0.4)
        with contextlib.suppress(FileNotFoundError):
            changed = damage(victim, way, all_files, draw)

    try:
        if not while_running and not damage(victim, way, all_files, draw):
            return None
        ended = call(stage.made_at(place), meanwhile=strike if while_running else None)
        if while_running and again and ended.status == 0:
            ended = call(stage.made_at(place))  # the damage may have come when it was done with that file
        found = files_of(place) if place.exists() else {}
    finally:
        if again:
            shutil.rmtree(place)
            shutil.copytree(whole, place)
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_bytes(before)
        os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    named = victim.name in ended.said or str(victim.parent) in ended.said
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    place_of, expected = victim.relative_to(workshop.folder).as_posix(), files_of(workshop.at(stage.out))
    return {
        "kind": "damage",
        "stage": stage.name,
        "again": again,
        "way": way,
        "running": while_running,
        "file": place_of,
        "outcome": outcome_of(stage, ended, named, len(lines)) or compared(place_of, expected, found, again),
        "said": lines[0][:300] if lines else "",
    }


def done(path: Path) -> Iterator[dict[str, Any]]:
    """What earlier calls have done."""
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def tell(trials: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> str:
    """The record."""
    kills = [trial for trial in trials if trial["kind"] == "kill"]
    harms = [trial for trial in trials if trial["kind"] == "damage"]
    lines = ["# Every stage under fire", "", f"`python benchmarks/faults.py --folder FOLDER --kills {given.kills} "]
    lines[-1] += (
        f"--damages {given.damages}`, torch {torch.__version__}, {os.cpu_count()} cores shared with others, seed "
    )
    lines[-1] += f"{given.seed}."
    lines += [
        "",
        "## Kills",
        "",
        "| stage | rounds | killed while it ran | the same files, nothing left |",
        "|---|---|---|---|",
    ]
    for stage in dict.fromkeys(trial["stage"] for trial in kills):
        of = [trial for trial in kills if trial["stage"] == stage]
        same = sum(trial["outcome"] == "same" for trial in of)
        lines.append(f"| {stage} | {len(of)} | {sum(trial['hit'] for trial in of)} | {same} |")
    same = sum(trial["outcome"] == "same" for trial in kills)
    lines.append(f"| all | {len(kills)} | {sum(trial['hit'] for trial in kills)} | {same} |")
    lines += [
        "",
        "## Damage",
        "",
        "| way | cases | refused, the file or its folder named | refused | same files | other |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for way in (*WAYS, "all"):
        of = [trial for trial in harms if way in (trial["way"], "all")]
        counts = Counter(trial["outcome"] for trial in of)
        known = [counts[name] for name in ("refused by name", "refused", "same files")]
        lines.append(f"| {way} | {len(of)} | {known[0]} | {known[1]} | {known[2]} | {len(of) - sum(known)} |")
    folders = Counter(trial["file"].split("/")[0] for trial in harms)
    lines += ["", f"{sum(trial['running'] for trial in harms)} of them while a command ran. Files of: "]
    lines[-1] += ", ".join(f"{name} {count}" for name, count in sorted(folders.items())) + "."
    good = ("same", "same files", "refused", "refused by name")
    bad = [trial for trial in trials if trial["outcome"] not in good]
    lines += ["", f"Other outcomes: {len(bad)}."]
    lines += [
        f"- {trial['stage']}, {trial.get('way', 'kill')} {trial.get('file', '')}: {trial['outcome']}" for trial in bad
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make everything once, and then kill and damage it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for module in _BEFORE_THE_FORKS:
        importlib.import_module(module)
    folder = given.folder.absolute()
    log = folder / "done.jsonl"
    trials = list(done(log))
    work = folder / "workshop"
    shutil.rmtree(work, ignore_errors=True)
    workshop = Workshop(work)
    workshop.write_text()
    workshop.plan()
    seconds = workshop.make_everything()
    all_files = [path for path in work.rglob("*") if path.is_file() and path.suffix != ".yaml" and path.parent != work]
    all_files += list(work.glob("*/config.yaml"))
    end = time.perf_counter() + 60 * given.minutes

    def note(trial: dict[str, Any] | None) -> None:
        if trial is not None:
            trials.append(trial)
            with log.open("a") as file:
                file.write(json.dumps(trial) + "\n")

    for number in range(given.kills):
        for stage in workshop.stages:
            if (
                time.perf_counter() < end
                and sum(t["stage"] == stage.name for t in trials if t["kind"] == "kill") <= number
            ):
                seed = hashlib.sha256(f"{given.seed} {stage.out} {number}".encode()).hexdigest()
                note(kill(workshop, stage, seconds[stage.out], random.Random(seed)))
    while time.perf_counter() < end and (count := sum(t["kind"] == "damage" for t in trials)) < given.damages:
        note(harm(workshop, random.Random(f"{given.seed} {count} {time.time_ns()}"), all_files))
    text = tell(trials, given)
    print(text)
    if given.record:
        given.record.write_text(text)


if __name__ == "__main__":
    main()
