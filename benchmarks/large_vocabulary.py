"""A vocabulary of 151,936 tokens from end to end: peak memory of every stage, and of a student's step in three ways.

    python -m benchmarks.large_vocabulary --output FOLDER

A made-up language with a tokenizer of that size learnt from it, a teacher of random weights (Llama 2 × 256, with 512
logits more than tokens), its cache in the default encoding, and a student 4 × 256 that reads a few steps of it. Each
stage is a process of its own. `control` has cross-entropy alone, `cached` the teacher's distribution beside it (and the
gradient ratios of step 1); `dense` is a step as it is usually written, all logits at once by autograd.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.capture_and_read import peak_megabytes
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.plan import plan
from palenka.cache_teachers.settings import CaptureSettings, PlanSettings
from palenka.data.corpus import Corpus
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.eval.measure import Measurement, measure
from palenka.eval.suite import Conditions
from palenka.train_student.optimizer import adamw
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

VOCABULARY, PADDING, WORDS = 151_936, 512, 34_000
STAGES = ("prepare", "plan", "capture", "dense", "control", "cached", "evaluate")
STEPS = 4


def language(folder: Path) -> None:
    """Text of made-up words, each once, which are long enough to have so many pairs of letters."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(10, 14))) for _ in range(WORDS)]
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", words), ("dev", draw.sample(words, WORDS // 4))):
        lines = [" ".join(chosen[start : start + 20]) for start in range(0, len(chosen), 20)]
        (folder / f"made-up.{split}").write_text("\n".join(lines) + "\n")


def make_teacher(place: Path, corpus: Path) -> None:
    """A model of random weights that has opinions, with more logits than the corpus has tokens."""
    settings = student(corpus.parent, place.name, layers=2)
    model: Any = settings.model.build(Corpus.open(corpus, "train"), seed=1)
    model.resize_token_embeddings(VOCABULARY + PADDING)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(place)
    for path in (corpus / "tokenizer").iterdir():
        shutil.copyfile(path, place / path.name)


def student(output: Path, name: str, layers: int = 4, windows: int = 16, **settings: object) -> TrainSettings:
    """A few steps of a Llama 256 wide."""
    shape = {"architecture": "llama", "hidden_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4}
    corpus = Corpus.open(output / "corpus", "train")
    plain = {"corpus": corpus.directory, "output": output / name, "model": shape, "validation": {"windows": 16}}
    plain |= {"global_batch": windows, "micro_batch": windows, "log_every": 1}
    fraction = STEPS * windows / (len(corpus.tokens) // 128)
    return TrainSettings.model_validate(plain | {"fraction": fraction} | settings)


def dense(settings: TrainSettings) -> None:
    """The same steps with the loss of transformers: cross-entropy of all logits at once, by autograd."""
    corpus, rule = Corpus.open(settings.corpus, "train"), settings.windows
    model: Any = AutoModelForCausalLM.from_config(settings.model.configured(corpus), dtype=torch.float32)
    optimizer = adamw(model, settings.optimizer, torch.device("cpu"))
    slots = rule.slots(len(corpus.tokens), 0)
    for step in range(STEPS):
        some = slots[step * settings.global_batch : (step + 1) * settings.global_batch]
        tokens = torch.from_numpy(corpus.gather(rule, 0, some))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def stage(name: str, output: Path, windows: int) -> dict[str, float]:
    """Run one stage; its peak memory in MB and its seconds."""
    corpus, cache = output / "corpus", {"t": {"cache": output / "cache"}}
    captured = {"corpus": corpus, "output": output / "cache", "teacher": output / "teacher"}
    started = time.perf_counter()
    if name == "prepare":
        language(output / "text")
        sources = (output / "text",)
        prepare(CorpusSettings(sources=sources, output=corpus, vocabulary_size=VOCABULARY, min_frequency=1))
        assert Corpus.open(corpus, "train").vocabulary_size == VOCABULARY
        make_teacher(output / "teacher", corpus)
    elif name == "plan":
        found = plan(PlanSettings.model_validate(captured | {"sample": 32}))
        print({key: found[key] for key in ("padding_mass", "bytes_per_token")}, file=sys.stderr)
    elif name == "capture":
        capture(CaptureSettings.model_validate(captured))
    elif name == "dense":
        dense(student(output, name, windows=windows))
    elif name == "control":
        train(student(output, name, windows=windows))
    elif name == "cached":
        train(student(output, name, windows=windows, teachers=cache, objective={"hard": 0.5, "logit": 0.5}))
    else:
        measure(Measurement(output / "cached", {"held_out": corpus}, Conditions(windows=64)), output / "cached.json")
    return {"peak_megabytes": peak_megabytes(), "seconds": time.perf_counter() - started}


def main() -> None:
    """Run the stages, each in a process of its own, and print their peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16, help="in a step of the student")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(stage(given.stage, given.output, given.windows)))
        return
    peaks = {}
    outputs = {"prepare": ".", "capture": "cache"}
    for name in given.stages:
        shutil.rmtree(given.output / outputs.get(name, name), ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.large_vocabulary", "--output", str(given.output)]
        command += ["--windows", str(given.windows), "--stage", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        peaks[name] = found["peak_megabytes"]
        print(f"{name:10} {peaks[name]:8,.0f} MB {found['seconds']:8.1f} s", flush=True)
    for name in ("control", "dense"):
        if {name, "cached"} <= set(peaks):
            print(f"cached / {name}: {peaks['cached'] / peaks[name]:.2f}")


if __name__ == "__main__":
    main()
