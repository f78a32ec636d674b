"""Held-out cross-entropy: mean negative log-likelihood of next tokens over fixed windows of a split.

`palenka eval MODEL_DIR --suite held_out --data CORPUS_DIR --out FILE.json`
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from transformers import PreTrainedModel

from configs.errors import UserError
from data.corpus import Corpus
from data.model_files import identity_of, load_model, require_fit
from data.processes import open_processes
from data.progress import progress_bar
from data.records import read_record, write_record
from data.windows import WindowRule, gather
from eval.statistics import bootstrap_interval

_MICRO_BATCH, _GPU_MICRO_BATCH = 4, 64
"""On a CPU the logits of more windows than these few are slower to allocate than to compute."""


def fixed_windows(corpus: Corpus, length: int, at_most: int | None = None) -> NDArray[np.int64]:
    """Windows of a held-out split, [n, length]: all of view 0, or a sample of it that is the same for every model.

    Raises:
        UserError: if the split is shorter than a window.
    """
    rule = WindowRule(length=length)
    slots = rule.slots(len(corpus.tokens), 0)[:at_most]
    if len(slots) == 0:
        raise UserError(
            f"the {corpus.split} split of {corpus.directory} has {len(corpus.tokens)} tokens, fewer than one window of "
            f"{length}; add text to it or shorten the windows"
        )
    return gather(corpus.tokens, rule, 0, slots)


@torch.inference_mode()
def window_losses(
    model: PreTrainedModel, windows: NDArray[np.int64], micro_batch: int
) -> Iterator[NDArray[np.float64]]:
    """Mean cross-entropy in nats of the next tokens of each window, micro-batch by micro-batch.

    Computed in float32 from the model's logits; L − 1 predictions in a window of L tokens.
    """
    was_training = model.training
    model.train(False)
    try:
        for start in range(0, len(windows), micro_batch):
            tokens = torch.from_numpy(windows[start : start + micro_batch]).to(model.device)
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            yield losses.view(len(tokens), -1).mean(dim=1).cpu().double().numpy()
    finally:
        model.train(was_training)


def measure_held_out(model_directory: Path, corpus: Corpus, length: int, out: Path) -> dict[str, Any]:
    """Held-out cross-entropy per token of a model, with a bootstrap interval over windows, written to a file.

    A file that was made from the same model, corpus and length is not made again.

    Raises:
        UserError: if the model does not fit the corpus, the file is something else, or the disk does not take it.
    """
    require_fit("model", model_directory, corpus, length)
    asked = {
        "suite": "held_out",
        "model": identity_of(model_directory, "float32").as_plain(),
        "corpus": corpus.fingerprint,
        "length": length,
    }
    if asked.items() <= (found := _earlier_result(out)).items():
        return found
    device = open_processes().device
    model = load_model(model_directory, device)
    windows = fixed_windows(corpus, length)
    losses = []
    with progress_bar(f"held out {model_directory.name}", windows.size) as advance:
        for part in window_losses(model, windows, _MICRO_BATCH if device.type == "cpu" else _GPU_MICRO_BATCH):
            losses.append(part)
            advance(len(part) * length)
    values = np.concatenate(losses)
    result = asked | {
        "parameters": model.num_parameters(),
        "windows": len(values),
        "cross_entropy": float(values.mean()),
        "interval": list(bootstrap_interval(values)),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_record(out, result)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; make room or choose another out") from error
    return result


def _earlier_result(out: Path) -> dict[str, Any]:
    """What an earlier measurement wrote; empty if there is none.

    Raises:
        UserError: if the file is something else, which is not to be lost.
    """
    if not out.exists():
        return {}
    try:
        found = read_record(out)
        if found.get("suite") == "held_out":
            return found
    except (OSError, UserError):
        pass
    raise UserError(f"{out} exists and is no result of the suite held_out; choose another out")
