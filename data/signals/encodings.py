"""The logit encodings that come with Palenka.

topk      the k most probable tokens and the exact mass of all others, at any number of temperatures
low_rank  the same, and a low-rank distribution over the others: the default
sampled   counts of draws from the whole distribution at one temperature: an unbiased estimate of it
hybrid    the k most probable tokens, and counts of draws from the others at one temperature: unbiased too
"""

from typing import Annotated

from palenka.data.signals.drawn_encodings import HybridEncoding, SampledEncoding
from palenka.data.signals.encoding import ENCODINGS, LogitEncoding
from palenka.data.signals.top_k_encodings import LowRankEncoding, TopKEncoding
from palenka.ground.registry import OneOf

__all__ = ["AnyLogitEncoding", "HybridEncoding", "LowRankEncoding", "SampledEncoding", "TopKEncoding"]

AnyLogitEncoding = Annotated[LogitEncoding, OneOf(ENCODINGS, "low_rank")]
"""A settings field that any registered encoding fits, chosen by its `kind`."""
