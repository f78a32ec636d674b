"""Speed of entity tracking with shared prefixes, compared with scoring its options one by one in batches.

    OMP_NUM_THREADS=1 python benchmarks/entity_tracking.py MODEL_DIR --data EVALUATION_DIR/entity_tracking

One by one is what a pipeline does: for each of the five options a pass over `--batch` items, padded on the right,
logits and log-softmax of all positions. Ours is given passes of as many tokens, with its trees and, not shared, with
a sequence in each. All score the same items, whole stories drawn with seed 0, in turn, round after round; quote the
ratios.
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

import palenka.eval.scoring
from palenka.data.model_files import load_model
from palenka.eval.choices import Choice
from palenka.eval.model import EvaluatedModel
from palenka.eval.protocols import ScoredTokens, encode_choices
from palenka.eval.scoring import log_likelihoods, reads_trees
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES

OPTIONS = 5


def chosen_items(items: Sequence[Choice], stories: int | None) -> list[Choice]:
    """All items of so many stories, by their first sentence; all of them without a number."""
    if stories is None:
        return list(items)
    story_of = [(item.options[0].context or "").split(". ")[0] for item in items]
    drawn = set(random.Random(0).sample(sorted(set(story_of)), stories))
    return [item for item, story in zip(items, story_of, strict=True) if story in drawn]


@torch.inference_mode()
def one_by_one(model: torch.nn.Module, sequences: Sequence[ScoredTokens], batch: int) -> NDArray[np.float64]:
    """The scores of the options of batches of items, option by option."""
    scores = np.empty(len(sequences))
    for first in range(0, len(sequences), OPTIONS * batch):
        for option in range(OPTIONS):
            places = range(first + option, min(first + OPTIONS * batch, len(sequences)), OPTIONS)
            rows = [torch.tensor(sequences[place].tokens) for place in places]
            tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            logits = model(input_ids=tokens[:, :-1], attention_mask=mask[:, :-1]).logits
            terms = logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
            for row, place in enumerate(places):
                start, stop = sequences[place].start, len(sequences[place].tokens)
                scores[place] = terms[row, start - 1 : stop - 1].double().sum()
    return scores


def main() -> None:
    """Time the two and print seconds, the ratio and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stories", type=int, help="of the data; all of them without it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    conditions = Conditions(protocol="babylm-2025")
    items = chosen_items(SUITES["entity_tracking"].read(options.data, conditions), options.stories)
    evaluated = EvaluatedModel(options.model)
    model = load_model(options.model, torch.device("cpu"))
    sequences = encode_choices(items, "babylm-2025", evaluated.tokenizer, evaluated.vocabulary_size, None)
    nodes = round(options.batch * float(np.mean([len(sequence.tokens) for sequence in sequences])))

    def ours(shared: bool) -> NDArray[np.float64]:
        with patch.object(palenka.eval.scoring, "_NODES_PER_PASS", nodes):
            return log_likelihoods(model, sequences, shared)

    sides: dict[str, Callable[[], NDArray[np.float64]]] = {
        "one by one": lambda: one_by_one(model, sequences, options.batch),
        "ours, not shared": lambda: ours(False),
        "shared": lambda: ours(reads_trees(model, sequences)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, NDArray[np.float64]] = {}
    for _ in range(options.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            scores[name] = side()
            seconds[name].append(time.perf_counter() - started)
    print(
        f"{options.model}: {len(items):,} items, {len(sequences):,} options, batch {options.batch} ({nodes:,} tokens a "
        f"pass), {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"
    )
    for name, values in seconds.items():
        ratios = [slow / fast for slow, fast in zip(values, seconds["shared"], strict=True)]
        print(
            f"{name:16s} median {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f}); sharing is "
            f"{statistics.median(ratios):.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    decisions = [each.reshape(-1, OPTIONS).argmax(axis=1) for each in scores.values()]
    print(
        f"largest difference of a score {np.abs(scores['one by one'] - scores['shared']).max():.1e} nats, "
        f"{(decisions[0] != decisions[-1]).sum()} choices differ"
    )


if __name__ == "__main__":
    main()
