"""Measuring one model on suites: what an earlier call has measured is kept, the rest is scored in one pass a suite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of, load_model
from palenka.eval.accuracy import PairScores, accuracies
from palenka.eval.held_out import held_out_request, held_out_result
from palenka.eval.minimal_pairs import MinimalPair, hash_of_pairs, read_pairs
from palenka.eval.protocols import Protocol, ScoredTokens, encode_pairs
from palenka.eval.results import earlier_results, read_scores, scores_file, write_results
from palenka.eval.scoring import log_likelihoods, reads_trees
from palenka.eval.suites import PairPrecision, Suite
from palenka.eval.tokenizer import hash_of_tokenizer, load_model_tokenizer
from palenka.ground.errors import UserError
from palenka.ground.processes import open_processes
from palenka.ground.progress import info, progress_bar

AGREEMENT_PAIRS = 512
"""Pairs of a suite that are scored in float32 too, where another precision is asked for."""

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Names that configurations have for the number of positions; none where a model has no bound."""
_DTYPES: dict[PairPrecision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Measurement:
    """What is to be measured of a model.

    Attributes:
        model: its directory.
        folders: the data of each suite: a folder of pairs, or a prepared corpus for held_out.
        protocol: of the minimal pairs.
        precision: that the model computes minimal pairs in; held-out text is always read in float32.
        split: of the corpus for held_out.
        length: tokens in its windows.
    """

    model: Path
    folders: Mapping[Suite, Path]
    protocol: Protocol = "babylm-2024"
    precision: PairPrecision = "float32"
    split: str = "dev"
    length: int = 128


def measure(asked: Measurement, out: Path) -> list[dict[str, Any]]:
    """Measure a model, write FILE.json and FILE.parquet; returns one result for each suite.

    What the file has already, of the same weights, tokenizer, data, protocol and precision, is not computed again.

    Raises:
        UserError: for data or a model that cannot be measured, or a file that cannot be written.
    """
    if out.suffix == ".parquet":
        raise UserError(f"out is {out}, but the figures go to a JSON file and the scores beside it; give FILE.json")
    pairs: dict[Suite, list[MinimalPair]] = {
        suite: read_pairs(folder, suite == "ewok_filtered")
        for suite, folder in asked.folders.items()
        if suite != "held_out"
    }
    corpus = Corpus.open(asked.folders["held_out"], asked.split) if "held_out" in asked.folders else None
    requests = _requests(asked, corpus)
    results, scores = _kept(out, requests)
    if len(results) == len(requests):
        info(f"{out} has these results of the same model and data already: nothing was computed again")
        return [results[suite] for suite in requests]
    if corpus is not None and "held_out" not in results:
        results["held_out"] = requests["held_out"] | held_out_result(asked.model, corpus, asked.length)
    for scored, told in _score(asked, {suite: pairs[suite] for suite in pairs if suite not in results}):
        scores[scored.suite] = scored
        results[scored.suite] = requests[scored.suite] | accuracies(scored) | told
    name = {"name": asked.model.resolve().name}
    return write_results(
        out, [name | results[suite] for suite in requests], [scores[suite] for suite in requests if suite in scores]
    )


def _requests(asked: Measurement, corpus: Corpus | None) -> dict[Suite, dict[str, Any]]:
    """Everything that decides the result of each suite."""
    requests: dict[Suite, dict[str, Any]] = {}
    identity = identity_of(asked.model, asked.precision).as_plain()
    for suite, folder in asked.folders.items():
        if corpus is not None and suite == "held_out":
            requests[suite] = held_out_request(asked.model, corpus, asked.length)
            continue
        requests[suite] = {
            "suite": suite,
            "protocol": asked.protocol,
            "precision": asked.precision,
            "data": hash_of_pairs(folder),
            "model": identity,
            "tokenizer": hash_of_tokenizer(asked.model),
        }
    return requests


def _kept(
    out: Path, requests: Mapping[Suite, dict[str, Any]]
) -> tuple[dict[Suite, dict[str, Any]], dict[Suite, PairScores]]:
    """The results, and the scores, that an earlier call wrote and that are still those asked for."""
    earlier = earlier_results(out, requests)
    results = {
        suite: found
        for suite, request in requests.items()
        for found in earlier
        if request.items() <= found.items() and "at_most" not in found
    }
    of_pairs = [suite for suite in results if suite != "held_out"]
    stored = read_scores(scores_file(out))[0] if of_pairs else {}
    return results, {suite: stored[suite] for suite in of_pairs}


def _score(
    asked: Measurement, pairs: Mapping[Suite, Sequence[MinimalPair]]
) -> Iterator[tuple[PairScores, dict[str, Any]]]:
    """The scores of each suite's pairs, with what is to be told of the model and its precision."""
    if not pairs:
        return
    device = open_processes().device
    model = load_model(asked.model, device)
    encoded = _encode(asked, model, pairs)
    trees = {suite: reads_trees(model, sequences) for suite, sequences in encoded.items()}
    exact: dict[Suite, NDArray[np.float64]] = {}
    if asked.precision != "float32":
        for suite, sequences in encoded.items():
            sample = [sequences[place] for place in _sampled(len(sequences))]
            exact[suite] = log_likelihoods(model, sample, trees[suite])
        model = load_model(asked.model, device, _DTYPES[asked.precision])
    for suite, of_suite in pairs.items():
        with progress_bar(f"{suite} {asked.model.name}", len(encoded[suite]), unit="sentences") as advance:
            values = log_likelihoods(model, encoded[suite], trees[suite], advance)
        scores = _pair_scores(suite, of_suite, values)
        told: dict[str, Any] = {"parameters": model.num_parameters()}
        if suite in exact:
            told["agreement"] = _agreement(values[_sampled(len(values))], exact[suite])
        yield scores, told


def _encode(
    asked: Measurement, model: PreTrainedModel, pairs: Mapping[Suite, Sequence[MinimalPair]]
) -> dict[Suite, list[ScoredTokens]]:
    config = model.config.get_text_config()
    positions = next((int(found) for name in _POSITIONS if (found := getattr(config, name, None))), None)
    tokenizer = load_model_tokenizer(asked.model, config.vocab_size)
    return {
        suite: encode_pairs(of_suite, asked.protocol, tokenizer, config.vocab_size, positions)
        for suite, of_suite in pairs.items()
    }


def _pair_scores(suite: Suite, pairs: Sequence[MinimalPair], values: NDArray[np.float64]) -> PairScores:
    good, bad = values[0::2], values[1::2]
    for pair, is_finite in zip(pairs, np.isfinite(good) & np.isfinite(bad), strict=True):
        if not is_finite:
            raise UserError(f"the model gives {pair.place} no finite log-probability; its weights are broken")
    tasks, indices = np.array([pair.task for pair in pairs]), np.array([pair.index for pair in pairs])
    return PairScores(suite, tasks, indices, good, bad)


def _sampled(count: int) -> list[int]:
    """Among the good and bad texts of all pairs in turn, the places of those of a fixed sample of pairs."""
    chosen = np.random.RandomState(0).permutation(count // 2)[:AGREEMENT_PAIRS].tolist()
    return [place for pair in chosen for place in (2 * pair, 2 * pair + 1)]


def _agreement(coarse: NDArray[np.float64], exact: NDArray[np.float64]) -> dict[str, Any]:
    """How far the sample's scores, and decisions, are from those in float32."""
    same = (coarse[0::2] >= coarse[1::2]) == (exact[0::2] >= exact[1::2])
    return {
        "pairs": len(same),
        "decisions": float(same.mean()),
        "largest_difference": float(np.abs(coarse - exact).max()),
    }
