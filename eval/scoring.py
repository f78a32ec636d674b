"""Log-probabilities of many short sequences under a causal language model, in float32, each prefix computed once.

Shape legend: B trees in a pass, N nodes in the longest of them, D hidden size, V vocabulary, P predictions.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from palenka.eval.prefix_tree import Tree, plant
from palenka.eval.protocols import ScoredTokens

_NODES_PER_TREE = 96
"""Minimum room in a tree; larger trees share more, but compute more masked attention."""
_LONGEST_PER_TREE = 2
"""Room in a tree in multiples of the longest sequence, if that is more: sequences that share a long beginning, such as
the options of entity tracking, would otherwise each need their own tree."""
_NODES_PER_PASS, _GPU_NODES_PER_PASS = 2048, 2**16
_LOGITS_PER_PASS, _GPU_LOGITS_PER_PASS = 2**26, 2**28
"""Where the model itself makes the logits of all nodes: 256 MB of them in float32, 1 GB on a GPU. A model that caps
its logits holds them some three times."""
_PROBED_SEQUENCES = 8
_LARGEST_PROBED_DIFFERENCE = 1e-5
"""Nats per token. Rounding in float32 causes some 2e-6; a model that reads a tree as a sequence differs far more."""


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel,
    sequences: Sequence[ScoredTokens],
    shared: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """The sum of the log-probabilities of each sequence's scored tokens in nats, [len(sequences)].

    Log-softmax in float32 whatever the model computes in, sums in float64: the same numbers in another order have the
    same sum, so word orders tie under a model that ignores order.

    Args:
        model: on its device, not training.
        sequences: in any order.
        shared: whether the model can read prefix trees (`reads_trees`).
        advance: called with numbers of finished sequences.
    """
    longest = max(len(sequence.tokens) for sequence in sequences)
    trees, predictions_of = plant(sequences, max(_NODES_PER_TREE, _LONGEST_PER_TREE * longest), shared)
    values = np.empty(sum(len(tree.targets) for tree in trees), dtype=np.float32)
    num_predicted, num_told = 0, 0
    for batch in _batches(trees, _nodes_per_pass(model, shared)):
        found = _log_probabilities(model, batch, shared)
        taken = 0
        for tree in batch:
            count = len(tree.targets)
            values[tree.first_prediction : tree.first_prediction + count] = found[taken : taken + count]
            taken += count
        num_predicted += len(found)
        advance((done := len(sequences) * num_predicted // len(values)) - num_told)
        num_told = done
    return np.array([values[numbers].sum(dtype=np.float64) for numbers in predictions_of])


def reads_trees(model: PreTrainedModel, sequences: Sequence[ScoredTokens]) -> bool:
    """Whether a model gives the same log-probabilities with prefix trees; tested on some of the sequences.

    This requires attention masks of any form, positions as an argument, and logits that are just the output embedding
    of the hidden states. Recurrent models and those with ALiBi or capped logits, for instance, lack one of these.

    Args:
        model: in float32, so that a difference is not rounding.
        sequences: to be scored; the longest are tested, since they show attention windows.
    """
    longest = sorted(sequences, key=lambda sequence: -len(sequence.tokens))[: _PROBED_SEQUENCES // 2]
    # Each also with its second half shifted by a token, so that prefixes branch for any sequences.
    halves = [(tokens, start, len(tokens) // 2) for tokens, start in longest]
    shifted = [ScoredTokens(tokens[:half] + tokens[half - 1 : -1], start) for tokens, start, half in halves]
    probed = [*longest, *shifted]
    plain = log_likelihoods(model, probed, shared=False)
    try:
        tree = log_likelihoods(model, probed, shared=True)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        return False  # other architectures refuse the arguments in their own ways
    lengths = np.array([len(tokens) - start for tokens, start in probed])
    return bool((np.abs(tree - plain) <= _LARGEST_PROBED_DIFFERENCE * lengths).all())


def _nodes_per_pass(model: PreTrainedModel, shared: bool) -> int:
    on_cpu = model.device.type == "cpu"
    nodes = _NODES_PER_PASS if on_cpu else _GPU_NODES_PER_PASS
    logits = _LOGITS_PER_PASS if on_cpu else _GPU_LOGITS_PER_PASS
    return nodes if shared else min(nodes, logits // model.config.get_text_config().vocab_size)


def _batches(trees: Sequence[Tree], nodes_at_most: int) -> list[list[Tree]]:
    """Trees grouped by similar size, so that a padded batch has no more nodes than allowed."""
    batches: list[list[Tree]] = []
    for tree in sorted(trees, key=len, reverse=True):
        if not batches or len(batches[-1][0]) * (len(batches[-1]) + 1) > nodes_at_most:
            batches.append([])
        batches[-1].append(tree)
    return batches


def _log_probabilities(model: PreTrainedModel, trees: Sequence[Tree], shared: bool) -> NDArray[np.float32]:
    """The log-probabilities [P] of all predictions of some trees, in their order."""
    size = max(len(tree) for tree in trees)
    # A prediction is made at a place, the row of its tree times N plus its node. Several may be made at one place (the
    # options of an item), so each place's logits are computed once: `rows` are the distinct places in ascending order,
    # `row_of[i]` the place of the i-th prediction in that order, and `order[i]` that prediction's number.
    places = np.concatenate([row * size + np.array(tree.sources) for row, tree in enumerate(trees)])
    targets = np.concatenate([tree.targets for tree in trees])
    order = np.argsort(places, kind="stable")
    rows, row_of = np.unique(places[order], return_inverse=True)
    device = model.device
    states = _hidden_states(model, trees, size) if shared else _logits(model, trees, size)
    states, at = states.flatten(0, 1), torch.from_numpy(rows).to(device)
    head = model.get_output_embeddings() if shared else torch.nn.Identity()
    assert head is not None
    chunk = _rows_per_chunk(model)
    found = np.empty(len(order), dtype=np.float32)
    for first in range(0, len(rows), chunk):
        log_probabilities = head(states[at[first : first + chunk]]).float().log_softmax(dim=-1)
        # row_of ascends, so the predictions of these places are one slice.
        start, stop = np.searchsorted(row_of, [first, first + chunk])
        picked = log_probabilities[
            torch.from_numpy(row_of[start:stop] - first).to(device),
            torch.from_numpy(targets[order[start:stop]]).to(device),
        ]
        found[order[start:stop]] = picked.cpu().numpy()
    return found


def _rows_per_chunk(model: PreTrainedModel) -> int:
    """Rows at a time: logits that stay in a processor's cache (8 MB), or 512 MB on a GPU."""
    values = 2**21 if model.device.type == "cpu" else 2**27
    return max(1, values // int(model.config.get_text_config().vocab_size))


def _hidden_states(model: PreTrainedModel, trees: Sequence[Tree], size: int) -> Tensor:
    """The states [B, N, D] before the output embedding: all nodes of each tree in one pass."""
    allowed = torch.from_numpy(np.stack([tree.ancestors(size) for tree in trees])).to(model.device)
    mask = torch.zeros(allowed.shape, dtype=model.dtype, device=model.device)
    mask.masked_fill_(~allowed, torch.finfo(model.dtype).min)
    states: Tensor = model.base_model(
        input_ids=_padded([tree.tokens for tree in trees], size, model),
        position_ids=_padded([tree.depths for tree in trees], size, model),
        attention_mask=mask.unsqueeze(1),
        use_cache=False,
    ).last_hidden_state
    return states


def _logits(model: PreTrainedModel, trees: Sequence[Tree], size: int) -> Tensor:
    """Logits [B, N, V] of trees that are sequences, as any causal model makes them; padded on the right."""
    tokens = _padded([tree.tokens for tree in trees], size, model)
    lengths = torch.tensor([len(tree) for tree in trees], device=model.device)
    mask = (torch.arange(size, device=model.device) < lengths.unsqueeze(1)).long()
    logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits


def _padded(rows: Sequence[list[int]], size: int, model: PreTrainedModel) -> Tensor:
    return torch.tensor([row + [0] * (size - len(row)) for row in rows], device=model.device)
