"""Speed of scoring minimal pairs, compared with lm-eval on the same pairs and model; and agreement of the two.

    OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/minimal_pairs.py MODEL_DIR --data EVALUATION_DIR

EVALUATION_DIR holds blimp_filtered and supplement_filtered. Needs `pip install lm-eval`. Ours is all of `palenka eval`
but the start of Python: reading and hashing the files and the weights, loading the model (twice for bf16), writing the
results. lm-eval's is its log-likelihood requests alone, batch of 64, with its own encoding. All three in turn, round
after round; quote the ratios.
"""

import argparse
import logging
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from numpy.typing import NDArray

from palenka.eval.measure import Measurement, measure
from palenka.eval.pair_suite import read_pairs
from palenka.eval.results import read_items
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES, folders_of

MEASURED = ("blimp_filtered", "blimp_supplement")
BATCH = 64


def chosen_data(data: Path, paradigms: int | None, to: Path) -> dict[str, Path]:
    """The folders of the suites; with a number, of BLiMP only so many whole paradigms, drawn with seed 0."""
    folders = folders_of(MEASURED, data)
    if paradigms is None:
        return folders
    files = random.Random(0).sample(SUITES["blimp_filtered"].files(folders["blimp_filtered"]), paradigms)
    part = to / "blimp_filtered"
    part.mkdir()
    for file in files:
        (part / file.name).symlink_to(file.resolve())
    return folders | {"blimp_filtered": part}


def by_lm_eval(model: HFLM, folders: dict[str, Path]) -> NDArray[np.float64]:
    """Its scores of the good and the bad sentence of every pair, [pairs, 2]."""
    pairs = [pair for suite in MEASURED for pair in read_pairs(SUITES[suite].files(folders[suite]), False)]
    texts = [option.text for pair in pairs for option in pair.options]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=("", f" {text}"), idx=number)
        for number, text in enumerate(texts)
    ]
    return np.array([score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]).reshape(-1, 2)


def by_us(model: Path, folders: dict[str, Path], precision: Literal["float32", "bf16"]) -> NDArray[np.float64]:
    """Our scores of the same, [pairs, 2]."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        measure(Measurement(model, folders, Conditions(precision=precision)), out)
        items = read_items(out)
    return np.concatenate(
        [np.stack([items[suite][name] for name in ("score_good", "score_bad")], axis=1) for suite in MEASURED]
    )


def main() -> None:
    """Time the three and print seconds, ratios and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--paradigms", type=int, help="of BLiMP; all of them without it")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    lm_eval_model = HFLM(pretrained=str(options.model), device="cpu", dtype="float32", batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        folders = chosen_data(options.data, options.paradigms, Path(folder))
        sides: dict[str, Callable[[], NDArray[np.float64]]] = {
            "lm-eval, float32": lambda: by_lm_eval(lm_eval_model, folders),
            "ours, float32": lambda: by_us(options.model, folders, "float32"),
            "ours, bf16": lambda: by_us(options.model, folders, "bf16"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        scores: dict[str, Any] = {}
        for _ in range(options.rounds):
            for name, side in sides.items():
                started = time.perf_counter()
                scores[name] = side()
                seconds[name].append(time.perf_counter() - started)
    report(options, seconds, scores)


def report(options: argparse.Namespace, seconds: dict[str, list[float]], scores: dict[str, Any]) -> None:
    """Print seconds, ratios and agreement."""
    theirs = scores["lm-eval, float32"]
    print(
        f"{options.model}: {len(theirs):,} pairs, {platform.machine()}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores, torch {torch.__version__}, n = {options.rounds}"
    )
    base = seconds["lm-eval, float32"]
    for name, values in seconds.items():
        ratios = [slow / fast for slow, fast in zip(base, values, strict=True)]
        ours = scores[name]
        different = (ours[:, 0] >= ours[:, 1]) != (theirs[:, 0] >= theirs[:, 1])
        print(
            f"{name:17s} median {statistics.median(values):7.2f} s ({min(values):.2f} to {max(values):.2f})  "
            f"{statistics.median(ratios):.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"largest difference of a score {np.abs(ours - theirs).max():.1e} nats, {different.sum()} decisions differ"
        )


if __name__ == "__main__":
    main()
