"""A live teacher: a causal language model in Hugging Face format whose forward pass yields the teacher signal."""

from pathlib import Path

import torch
from torch import Tensor

from configs.errors import UserError
from configs.settings import Precision
from data.corpus import Corpus
from data.manifest import LogitEncoding
from data.model_files import identity_of, load_model, require_fit
from data.signal import TeacherSignal, top_k_signal

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A frozen model on a device, fit for a corpus.

    Args:
        directory: Hugging Face model directory with safetensors weights and the corpus's tokenizer.
        precision: the type of its weights; the signal is float32 whatever it is.
        device: where it runs.
        corpus: what it is to read.
        length: tokens in a window.

    Raises:
        UserError: if the directory holds no such model, or it does not fit the corpus; both sides are named.
    """

    def __init__(
        self, directory: Path, precision: Precision, device: torch.device, corpus: Corpus, length: int
    ) -> None:
        require_fit("teacher", directory, corpus, length)
        self.directory = directory
        self.precision = precision
        self.identity = identity_of(directory, precision)
        self._device = device
        self._model = load_model(directory, device, _DTYPES[precision])

    @torch.inference_mode()
    def signal(self, tokens: Tensor, encoding: LogitEncoding) -> TeacherSignal:
        """What it says about windows [B, L]: one forward pass.

        Raises:
            UserError: if its output is not finite.
        """
        logits = self._model(input_ids=tokens.to(self._device), use_cache=False).logits
        signal = top_k_signal(logits, encoding.k, encoding.temperatures)
        if not bool(signal.values.isfinite().all()):
            raise UserError(
                f"teacher {self.directory} gives logits that are not finite in {self.precision}; "
                "try precision float32, or train it again"
            )
        return signal
