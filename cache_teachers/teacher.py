"""A live teacher: a causal language model in Hugging Face format whose forward pass yields the teacher signal."""

from pathlib import Path

import torch
from torch import Tensor

from configs.errors import UserError
from configs.settings import Precision
from data.corpus import Corpus
from data.manifest import LogitEncoding, TeacherIdentity
from data.model_files import load_model, read_config, require_fit, weights_hash
from data.signal import TeacherSignal, top_k_signal

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_NOT_IDENTITY = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


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


def identity_of(directory: Path, precision: Precision) -> TeacherIdentity:
    """What makes the model in a directory the same teacher: a hash of its tensors, its configuration, its precision."""
    config = {key: value for key, value in read_config(directory).items() if key not in _NOT_IDENTITY}
    return TeacherIdentity(weights=weights_hash(directory), config=config, precision=precision)
