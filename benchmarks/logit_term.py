"""What the logit term costs a training step: alone, with our term, and with the same term by plain autograd.

    python benchmarks/logit_term.py

A Llama student over 4,096 tokens, two teachers, k = 32, T = 1. The three are timed in turn, round after round, so that
a noisy machine disturbs all alike; quote the ratios.
"""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from data.signal import TeacherSignal, top_k_signal
from train_student.terms import hard_loss, tail_bucket_kl

ROUNDS = 15
VOCABULARY, LENGTH, MICRO_BATCH = 4096, 128, 8
WEIGHTS = {"a": 0.5, "b": 0.5}

Signals = Mapping[str, TeacherSignal]
Loss = Callable[[Tensor, Tensor, Signals], Tensor]


def plain_tail_bucket(logits: Tensor, signals: Signals) -> Tensor:
    """The same divergence, its gradient left to autograd."""
    normalizer = logits.logsumexp(-1)
    total = logits.new_zeros(())
    for name, signal in signals.items():
        kept, tail = signal.at(1.0)
        log_student = logits.gather(-1, signal.ids) - normalizer.unsqueeze(-1)
        outside = logits.scatter(-1, signal.ids, -math.inf).logsumexp(-1) - normalizer
        divergence = (kept.exp() * (kept - log_student)).sum(-1) + tail.exp() * (tail - outside)
        total = total + WEIGHTS[name] * divergence.mean()
    return total


LOSSES: dict[str, Loss] = {
    "cross-entropy": lambda logits, tokens, _: hard_loss(logits, tokens),
    "with our term": lambda logits, tokens, s: hard_loss(logits, tokens) + tail_bucket_kl(logits, s, WEIGHTS, 1.0)[0],
    "with plain autograd": lambda logits, tokens, s: hard_loss(logits, tokens) + plain_tail_bucket(logits, s),
}


def main() -> None:
    """Time the three and print medians, spread and ratios."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=LENGTH,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(0, VOCABULARY, (MICRO_BATCH, LENGTH))
    signals = {name: top_k_signal(torch.randn(MICRO_BATCH, LENGTH, VOCABULARY) * 3, 32, (1.0,)) for name in WEIGHTS}
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for round_number in range(ROUNDS + 2):
        for name, loss in LOSSES.items():
            started = time.perf_counter()
            loss(model(input_ids=tokens, use_cache=False).logits, tokens, signals).backward()
            model.zero_grad()
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - started)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, n = {ROUNDS}")
    base = statistics.median(seconds["cross-entropy"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:20s} median {middle * 1e3:6.1f} ms (min {min(values) * 1e3:.1f}, max {max(values) * 1e3:.1f})  "
            f"{middle / base:.2f} x cross-entropy  {MICRO_BATCH * LENGTH / middle:,.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
