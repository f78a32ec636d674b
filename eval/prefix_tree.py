"""Sequences as prefix trees: common beginnings are read, and predicted from, once.

Minimal pairs share their beginnings, with each other and with their neighbours in a paradigm: BLiMP's 65,093 filtered
and supplement pairs have 1,427,454 tokens to read at V = 16,000, but 784,138 different prefixes. Sorted, each sequence
shares with its predecessor all that it shares with any before it. A tree is read in one pass as a row of nodes that
attend only to their ancestors, each at the position of its depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from palenka.eval.protocols import ScoredTokens


@dataclass
class Tree:
    """The prefixes of some sequences, one node each, parents before children; and the predictions at them.

    Attributes:
        tokens: of each node.
        depths: of each node; its position in its sequence.
        parents: of each node; −1 at a sequence's first token.
        sources: for each prediction, the node that it is made at.
        targets: for each prediction, the token that is predicted.
        first_prediction: the number of the first of these predictions among those of all trees.
    """

    first_prediction: int
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add_node(self, token: int, path: list[int]) -> None:
        """Append a node to a path of nodes."""
        self.depths.append(len(path))
        self.parents.append(path[-1] if path else -1)
        path.append(len(self.tokens))
        self.tokens.append(token)

    def add_prediction(self, source: int, target: int) -> int:
        """Add the prediction of a token at a node; returns the prediction's number."""
        self.sources.append(source)
        self.targets.append(target)
        return self.first_prediction + len(self.targets) - 1

    def ancestors(self, size: int) -> NDArray[np.bool_]:
        """The attention mask, [size, size]: each node's ancestors and itself; padding nodes attend to themselves."""
        allowed = np.eye(size, dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                allowed[node] |= allowed[parent]
        return allowed


def plant(
    sequences: Sequence[ScoredTokens], nodes_at_most: int, shared: bool
) -> tuple[list[Tree], list[NDArray[np.int64]]]:
    """Trees that hold all sequences, and for each sequence the numbers of the predictions that make up its score.

    Args:
        sequences: in any order; equal ones get the same predictions.
        nodes_at_most: of a tree; a longer sequence gets its own tree.
        shared: False gives every sequence its own tree, so that each is read as usual; the same token after the same
            prefix is still predicted only once.
    """
    trees: list[Tree] = []
    predictions_of: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(sequences)
    previous: tuple[int, ...] = ()
    nodes: list[int] = []
    predictions: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number].tokens):
        tokens, start = sequences[number]
        # Sorted, sequences with a common beginning follow each other. `nodes` is the path in the last tree, one node
        # for each token read; `predictions[i]` is the number of the prediction of token i, which the node of
        # token i − 1 makes. Both stay as far as this sequence begins like the one before.
        common = _common_length(previous, tokens)
        del nodes[common:]
        predictions[common:] = [_NOT_PREDICTED] * (len(tokens) - common)
        # The last token is predicted and never read, so it needs no node.
        wanted = len(tokens) - 1 - len(nodes)
        if wanted and (not trees or not shared or len(trees[-1]) + wanted > nodes_at_most):
            trees.append(Tree(trees[-1].first_prediction + len(trees[-1].targets) if trees else 0))
            # A new tree has no path yet: all of the sequence is read again. Its predictions of before stay valid.
            nodes = []
        for token in tokens[len(nodes) : -1]:
            trees[-1].add_node(token, nodes)
        for place in range(start, len(tokens)):
            if predictions[place] == _NOT_PREDICTED:
                predictions[place] = trees[-1].add_prediction(nodes[place - 1], tokens[place])
        predictions_of[number] = np.array(predictions[start:], dtype=np.int64)
        previous = tokens
    return trees, predictions_of


_NOT_PREDICTED = -1


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning of two sequences."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
