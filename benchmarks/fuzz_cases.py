"""Cases for `fuzz.py`: commands of the fault tests, something in which is exchanged for something hostile.

Each kind is a function from a `Desk` to the words of a command. What it makes for the command lies in the desk's
folder, which the command runs in.
"""

import csv
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fault_stages import Stage, Workshop
from tests.test_hostile import BOMB, LINES, NUMBERS, TEXTS

EXTREMES = (
    *("0", "-1", "-0", "0.0", "1e-320", "1e309", "-1e309", "nan", "inf", "1e12", "1e18", "1" * 30, "9" * 5000),
    *(
        "9007199254740992",
        "18446744073709551616",
        "1_000",
        "0x10",
        "1.5",
        "\u0661",
        "1e3",
        "true",
        "null",
        "",
        " ",
        "٣",
    ),
)
"""Numbers that no option wants, and words that are nearly numbers."""
NAMES = (
    *("/", "", ".", "..", "fifo", "/dev/full", "/dev/null", "/dev/zero", "file", "file/x", "dir", "loop", "dangling"),
    *("x" * 300, "y/" * 3000, "[bold]x[/]", "[x]", "a\nb", "a\tb", "\udcff", "\0", "é", " ", "-", "--", "~nobody/x"),
    *("$HOME", "$UNSET", "%s", "{a: b}", "[1,2", "&a *a", "!!python/x", "../x", "a/../../x", "a: b", "::", "bytes"),
    *("/proc/self/mem", "/proc/1/root", "/proc/self/fd/0", "empty", "emptydir", "bad.json", "deep.json", "nul.json"),
    *("huge.json", "http://x.invalid/a", "org/none-at-all", "2024-01-01", "yes", "null", "cpu", "cuda", "--help=x"),
)
"""Names of files, folders and models that are there, are not, or cannot be; `Desk` has made those that are."""
DESKTOP = ("fifo", "file", "dir", "loop", "dangling", "bytes", "empty", "emptydir")
ROWS: Mapping[str, Sequence[dict[str, Any]]] = {
    "minimal_pairs": [{"sentence_good": "the dog sees .", "sentence_bad": "dog the sees ."}],
    "ewok_filtered": [{"Domain": "d", "Context1": "the dog", "Target1": "sees", "Target2": "red"}],
    "comps": [{"prefix_acceptable": "the dog", "prefix_unacceptable": "the stone", "property_phrase": "sees ."}],
    "entity_tracking": [{"input_prefix": "the dog", "options": ["sees", "finds", "red", "old", "and"], "numops": 0}],
    "global_piqa_parallel": [{"prompt": "the dog", "solution0": "sees", "solution1": "red", "label": 0}],
    "wug_adj": [{"sentences": f"the dog {word}\tthe {word} dog", "ratio": 0.1 * n} for n, word in enumerate("abcde")],
    "glue": [{"sentence1": "the dog", "sentence2": "a dog", "label": number % 2} for number in range(6)],
    "reading": [
        {"item": 1, "word": "dog", "prev_word": "the", "Subtlex_log10": 1.0, "length": 3, "context": "the"},
        {"item": 1, "word": "sees", "prev_word": "dog", "Subtlex_log10": 2.0, "length": 4, "context": "the dog"},
    ],
    "corpus": [{"text": "the dog sees the old river ."}] * 30,
}
"""Rows of a suite's file, or of a source of text."""
MORE: tuple[tuple[str, ...], ...] = (
    *(
        ("cache", "inspect", "AT/cache-topk"),
        ("cache", "plan", "AT/cache-topk.yaml", "--output", "OUT"),
        ("status", "AT"),
    ),
    *(("cache", "verify", "--config", "AT/cache-topk.yaml", "--output", "AT/cache-topk"), ("configs", "list")),
    *(("parameters", "AT/student.yaml"), ("configs", "copy", "demo", "OUT"), ("data", "fetch", "babylm")),
    *(("train", "AT/student.yaml", "--plan"), ("data", "convert", "x.gguf"), ("train", "AT/student.yaml", "--dry_run")),
)
"""Commands beside the stages; AT stands for the workshop."""


@dataclass
class Desk:
    """What a case is made with.

    Attributes:
        workshop: with everything that commands read, and its stages.
        folder: an empty one, that the command runs in.
        draw: for every choice.
        values: hostile values of any type, by hypothesis.
        options_of: a command's options, by its first words.
    """

    workshop: Workshop
    folder: Path
    draw: random.Random
    values: Sequence[Any]
    options_of: Callable[[tuple[str, ...]], Sequence[str]]

    def lay_out(self) -> None:
        """Empty the folder, and put there what hostile names name."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        os.mkfifo(self.folder / "fifo")
        for name in ("dir", "emptydir"):
            (self.folder / name).mkdir()
        for name, target in (("loop", "loop"), ("dangling", "nowhere")):
            (self.folder / name).symlink_to(target)
        texts = {"file": "x", "dir/a.txt": "hello\n", "bad.json": "{", "deep.json": "[" * 100_000, "empty": ""}
        texts |= {"nul.json": '{"a": "\0"}', "huge.json": f'{{"a": {"9" * 5000}}}'}
        for name, text in texts.items():
            (self.folder / name).write_text(text)
        (self.folder / "bytes").write_bytes(b"\xff\xfe\x00\x80")

    def stage(self, *prefixes: str) -> Stage:
        """Any stage that runs in one process, with one of these prefixes of its name, if any is given."""
        stages = [stage for stage in self.workshop.stages if not stage.launched]
        return self.draw.choice([stage for stage in stages if stage.name.startswith(prefixes or "")])

    def command(self) -> list[str]:
        """Any whole command; what it makes goes into the folder."""
        more = [[word.replace("AT", str(self.workshop.folder)) for word in words] for words in MORE]
        stages = [[*stage.arguments] for stage in self.workshop.stages if not stage.launched]
        out = str(self.folder / "out" / "o")
        return [word.replace("OUT", out) for word in self.draw.choice(stages + more)]

    def own_files(self, stage: Stage) -> list[str]:
        """A stage's command on copies of its files of settings, and of what a study makes, in the folder."""
        at, here = str(self.workshop.folder), str(self.folder / "at")
        Path(here).mkdir()
        reads = stage.reads if stage.name == "study" else ()
        for name in reads:
            shutil.copytree(self.workshop.at(name), Path(here) / name)
        for path in self.workshop.folder.glob("*.yaml"):
            text = path.read_text()
            for name in reads:
                text = text.replace(f'"{at}/{name}"', f'"{here}/{name}"')
            (Path(here) / path.name).write_text(text)
        words = [word.replace(at, here) if word.endswith(".yaml") else word for word in stage.arguments]
        return [word.replace("OUT", str(self.folder / "out" / "o")) for word in words]

    def value(self) -> Any:  # noqa: ANN401 - any JSON, and some that is none
        """A hostile value."""
        draw = self.draw.random()
        if draw < 0.5:
            return self.draw.choice(self.values)
        return self.draw.choice(NAMES if draw < 0.75 else EXTREMES)


def known(desk: Desk, number: int) -> list[str]:
    """A text of the tests' corpus, in place of one of a command's files or after it."""
    text = [*TEXTS.values()][number // 2 % len(TEXTS)]
    words = desk.own_files(desk.stage("prepare", "train", "capture", "grid", "study"))
    file = Path(desk.draw.choice([word for word in words if word.endswith(".yaml")] or [str(desk.folder / "x.yaml")]))
    before = file.read_text() + "\n" if number % 2 and file.exists() else ""
    before = yaml.safe_dump(json.loads(before)) if before else ""
    file.write_bytes(f"{before}{text}\n".encode("utf-8", "surrogatepass"))
    return words if str(file) in words else ["data", "prepare", str(file)]


def files(desk: Desk, _: int) -> list[str]:
    """A value somewhere in a file of settings, in YAML."""
    stage = desk.stage("train", "capture", "grid", "study")
    words = desk.own_files(stage)
    given = Path(next(word for word in words if word.endswith(".yaml")))
    names = [
        given,
        *(given.with_name(name) for name in ("grid-student.yaml", "study-student.yaml", "study-corpus.yaml")),
    ]
    file = desk.draw.choice(names if stage.name in ("grid", "study") else [given])
    content = exchanged(json.loads(file.read_text()), desk)
    try:
        text = yaml.safe_dump(content) if desk.draw.random() < 0.5 else json.dumps(content)
    except (ValueError, yaml.YAMLError):
        text = json.dumps(content, default=str)
    file.write_bytes(
        torn(text.encode("utf-8", "surrogatepass"), desk)
        if desk.draw.random() < 0.3
        else text.encode("utf-8", "surrogatepass")
    )
    return words


def words(desk: Desk, _: int) -> list[str]:
    """One or two words of a command exchanged for hostile names."""
    command = desk.command()
    first = _verbs(command)
    for _ in range(desk.draw.choice((1, 1, 1, 2))):
        if len(command) > first:
            command[desk.draw.randrange(first, len(command))] = desk.draw.choice(NAMES)
    return command


def options(desk: Desk, _: int) -> list[str]:
    """One or two options more, with hostile words."""
    command = desk.command()
    offered = desk.options_of(tuple(command[: _verbs(command)]))
    for _ in range(desk.draw.choice((1, 1, 2))):
        name = desk.draw.choice(offered) if offered else "--x"
        value = desk.value()
        value = value if isinstance(value, str) else json.dumps(value, default=str)
        command += [f"{name}={value}"] if desk.draw.random() < 0.3 else [name, value]
    return command


def numbers(desk: Desk, _: int) -> list[str]:
    """An extreme number for an option of a command."""
    if desk.draw.random() < 0.3:
        name, value = desk.draw.choice([*NUMBERS.items()])
        stage = desk.stage("train")
        return [*stage.made_at(desk.folder / "out" / "o"), f"--{name}", str(value)]
    command = desk.command()
    offered = desk.options_of(tuple(command[: _verbs(command)]))
    return [*command, desk.draw.choice(offered) if offered else "--x", desk.draw.choice(EXTREMES)]


def lines(desk: Desk, _: int) -> list[str]:
    """A file of a suite, or of text, one row of which is hostile."""
    suite = desk.draw.choice([*ROWS])
    folder = desk.folder / "data"
    folder.mkdir()
    rows = [dict(row) for row in ROWS[suite]]
    place = desk.draw.randrange(len(rows))
    if desk.draw.random() < 0.6:
        rows[place] = exchanged(rows[place], desk)
    if suite == "reading":
        text = io.StringIO()
        writer = csv.DictWriter(text, [*ROWS[suite][0]], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row if isinstance(row, dict) else {"word": row} for row in rows)
        content = [text.getvalue().encode("utf-8", "surrogatepass")]
    else:
        content = [json.dumps(row, default=str).encode() + b"\n" for row in rows]
    if desk.draw.random() < 0.4:
        content[desk.draw.randrange(len(content))] = desk.draw.choice(LINES) + b"\n"
    elif desk.draw.random() < 0.4:
        content = [torn(b"".join(content), desk)]
    name = {"reading": "reading_data.csv", "glue": "rte.train.jsonl"}.get(suite, "a.jsonl")
    (folder / name).write_bytes(b"".join(content))
    if suite == "glue":
        (folder / "rte.valid.jsonl").write_bytes(b"".join(content))
    if suite == "corpus":
        more = desk.draw.choice(([], ["--dev_fraction", "0.3"], ["--text_field", "x"]))
        return [
            "data",
            "prepare",
            "--sources",
            str(folder),
            "--vocabulary_size",
            "300",
            "--output",
            str(desk.folder / "out" / "o"),
            *more,
        ]
    student = str(desk.workshop.at("student"))
    asked = ["--suite", suite, "--data", str(folder), "--device", "cpu", "--out", str(desk.folder / "out" / "o.json")]
    return ["eval", student, *asked, *(["--protocol", "babylm-2025"] if desk.draw.random() < 0.5 else [])]


def models(desk: Desk, _: int) -> list[str]:
    """A model's directory with a hostile file, given to a command that reads models."""
    model = desk.folder / "model"
    shutil.copytree(desk.workshop.at("exported"), model)
    file = model / desk.draw.choice(
        ("config.json",) * 3
        + ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
    )
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(exchanged(json.loads(content[8 : 8 + size]), desk), default=str).encode()
        content = (
            torn(content, desk)
            if desk.draw.random() < 0.5
            else len(header).to_bytes(8, "little") + header + content[8 + size :]
        )
    elif desk.draw.random() < 0.2:
        content = torn(content, desk)
    else:
        content = json.dumps(exchanged(json.loads(content), desk), default=str).encode()
    file.write_bytes(content)
    at, out = desk.workshop.at, str(desk.folder / "out" / "o")
    text, tiny = str(at("text")), ("--fraction", "0.1", "--output", out)
    live = json.loads(at("student-logit.yaml").read_text()) | {
        "teachers": {"t": {"source": "live", "model": str(model)}}
    }
    begun = json.loads(at("student-hard.yaml").read_text()) | {"model": {"from": str(model)}}
    for name, settings in (("live", live), ("begun", begun)):
        (desk.folder / f"{name}.yaml").write_text(json.dumps(settings))
    return desk.draw.choice(
        (
            ["cache", "run", str(at("cache-low_rank.yaml")), "--teacher", str(model), *tiny],
            ["cache", "plan", str(at("cache-topk.yaml")), "--teacher", str(model), "--output", out],
            [
                "eval",
                str(model),
                "--suite",
                "held_out",
                "--data",
                str(at("corpus")),
                "--length",
                "16",
                "--device",
                "cpu",
                "--out",
                f"{out}.json",
            ],
            ["generate", str(model), "--prompt", "the dog", "--tokens", "3", "--device", "cpu"],
            ["data", "prepare", "--sources", text, "--tokenizer", str(model), "--output", out],
            ["train", str(desk.folder / "live.yaml"), *tiny],
            ["train", str(desk.folder / "begun.yaml"), *tiny],
            ["parameters", str(desk.folder / "begun.yaml")],
        )
    )


KINDS: Mapping[str, Callable[[Desk, int], list[str]]] = {
    each.__name__: each for each in (known, files, words, options, numbers, lines, models)
}


def exchanged(content: Any, desk: Desk) -> Any:  # noqa: ANN401 - any JSON
    """The same with a hostile value somewhere, or without something, or with something more."""
    if isinstance(content, dict) and content and desk.draw.random() < 0.85:
        key = desk.draw.choice([*content])
        way = desk.draw.random()
        if way < 0.08:
            return {name: value for name, value in content.items() if name != key}
        if way < 0.14:
            return {**content, str(desk.value()): desk.value()}
        return content | {key: exchanged(content[key], desk)}
    if isinstance(content, list) and content and desk.draw.random() < 0.7:
        place = desk.draw.randrange(len(content))
        return [*content[:place], exchanged(content[place], desk), *content[place + 1 :]]
    if isinstance(content, int | float) and desk.draw.random() < 0.7:
        return desk.draw.choice(
            (0, -1, 1, 2, 3, 1.5, 10**5, 10**9, 10**12, 2**53, 2**63, 2**64, 10**30, -(10**30), 1e-320, 1e308)
        )
    return desk.value()


def torn(content: bytes, desk: Desk) -> bytes:
    """Bytes with a part cut out, doubled, flipped or exchanged for a hostile piece."""
    start, stop = sorted(desk.draw.randrange(len(content) + 1) for _ in range(2))
    stop = min(stop, start + 40)
    pieces = (
        b"",
        content[start:stop] * 2,
        b"[" * 100_000,
        b"\xff",
        b"\0",
        b"\xed\xa0\x80",
        b": ",
        b"{",
        b"&a [*a]",
        b"\n",
        b"9" * 5000,
        BOMB.encode(),
    )
    return content[:start] + desk.draw.choice(pieces) + content[stop:]


def _verbs(command: Sequence[str]) -> int:
    """The words that name a command."""
    return 2 if command[0] in ("data", "cache", "configs") or command[1] in ("compare", "export") else 1
