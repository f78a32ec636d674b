"""The two scripts for a GPU, tried on a CPU with small shapes, from end to end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palenka.templates import write_pairs

ROOT = Path(__file__).parents[2]
NOUNS = ["teacher", "student", "window", "river", "stone", "garden", "lantern"]


def call(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{script}", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_everything_that_is_measured_on_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    done = call("gpu", "--output", tmp_path, "--device", "cpu", "--smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    told = read(tmp_path / "gpu.json")
    assert set(told) == {
        *("call", "tests", "text", "teachers", "captures", "steps", "profile", "reading", "per_gpu", "seconds"),
    }
    assert told["steps"]["cached_against_control"] > 0
    assert set(told["per_gpu"]) == {"1", "2"}
    assert (tmp_path / "gpu.md").read_text().count("|") > 20


@pytest.mark.slow
def test_the_study_goes_on_from_its_first_part(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for split, lines in (("train", 1500), ("dev", 300)):
        said = [f"the {NOUNS[n % 7]} sees the {NOUNS[n // 7 % 7]} ." + "\n" * (n % 20 == 19) for n in range(lines)]
        (text / f"switchboard.{split}").write_text("\n".join(said) + "\n")
    write_pairs(tmp_path / "pairs")
    shared = ("--output", tmp_path / "study", "--device", "cpu", "--shrunken", "--minutes", "0.5")
    early = call("gpu_study", "--part", "students", *shared)
    assert early.returncode == 2
    assert "run --part teachers first" in early.stderr
    first = call("gpu_study", "--part", "teachers", "--text", text, *shared)
    assert first.returncode == 0, first.stderr[-2000:]
    pairs = ("--suite", "minimal_pairs", "--blimp", tmp_path / "pairs")
    second = call("gpu_study", "--part", "students", *pairs, *shared)
    assert second.returncode == 0, second.stderr[-2000:]
    told = read(tmp_path / "study" / "gpu_study.json")
    for name in ("control", "logit", "palenka"):
        assert {"held_out", "minimal_pairs", "epochs", "published_epochs"} <= set(told[f"student {name}"])
    assert len({told[f"student {name}"]["fraction"] for name in ("control", "logit", "palenka")}) == 1
