"""CUDA graphs: the passes of a micro-batch, recorded once and launched as a whole.

A step of a student of 58 M parameters is some thousand kernels, and a GPU finishes most of them sooner than the host
launches the next. A graph is one launch. It repeats the recorded kernels on the recorded addresses, so whatever may
change between micro-batches must lie in memory: the batch is copied there. Numbers of the host, such as the weights of
terms, are part of a recording: if they change, a new one is needed. An ordinary pass asks the device nothing
(`tests/train_student/test_waiting.py`), which a recording requires.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor, nn

from palenka.data.signals.stream import EncodedBatch
from palenka.ground.errors import UserError, reason_of
from palenka.ground.processes import is_alone_on_gpu
from palenka.ground.settings import Precision
from palenka.train_student.optimizer import gradients_added

_PLAIN = 3
"""Plain micro-batches before one is recorded, at least: they compile, choose kernels and make room."""

Passes = Callable[[EncodedBatch, Mapping[str, float]], dict[str, Tensor]]
"""Forward and backward pass of a micro-batch: adds to the gradients, and returns loss and terms."""


class Graphed:
    """Launches `Passes` as a whole, once the weights of their terms have stayed the same from one step to the next.

    Results and gradients are overwritten by the next call. The memory of the passes is held between steps too. The
    passes are given with each call: kept here, they would keep their trainer alive, and with it the graph's memory.

    Args:
        parameters: that get gradients.
        num_micro_batches: of a step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_micro_batches: int) -> None:
        self._parameters, self._num_micro_batches = parameters, num_micro_batches
        self._asked: object = None
        self._count = 0
        self._recorded: _Recorded | None = None

    def forget(self) -> None:
        """Give the memory of the recording back; another one is made after some plain passes."""
        self._asked = self._recorded = None

    def __call__(self, passes: Passes, batch: EncodedBatch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The result of the passes for a micro-batch; see `Passes`.

        Raises:
            UserError: if the passes cannot be recorded.
        """
        asked = dict(weights), [part.shape for part in batch.tensors()]
        if asked != self._asked:
            self._asked, self._count, self._recorded = asked, 0, None
        self._count += 1
        if self._count <= max(_PLAIN, self._num_micro_batches):
            return passes(batch, weights)
        if self._recorded is None:
            self._recorded = self._record(passes, batch, weights)
        return self._recorded.replay(batch)

    def _record(self, passes: Passes, batch: EncodedBatch, weights: Mapping[str, float]) -> "_Recorded":
        inputs, graph = batch.map(torch.clone), torch.cuda.CUDAGraph()
        before = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None  # so that its gradient becomes memory of the graph
        try:
            # Other threads read and page-lock the next batches meanwhile, which the default mode forbids.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                values = passes(inputs, weights)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # The end of a failed capture fails too, and hides what went wrong inside.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            raise UserError(
                f"this run's step cannot be recorded as a CUDA graph ({reason_of(cause)}); set cuda_graphs to false"
            ) from error
        gradients = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        for parameter, gradient in zip(self._parameters, before, strict=True):
            parameter.grad = gradient
        return _Recorded(self._num_micro_batches > 1, graph, inputs, values, gradients)


@dataclass(frozen=True)
class _Recorded:
    """A recording: whether a step has several micro-batches, the graph, and the memory that it reads and writes."""

    is_followed: bool
    graph: torch.cuda.CUDAGraph
    inputs: EncodedBatch
    values: dict[str, Tensor]
    gradients: Sequence[tuple[nn.Parameter, Tensor]]

    def replay(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Forward and backward pass of a micro-batch of the recorded shape."""
        torch._foreach_copy_([*self.inputs.tensors()], [*batch.tensors()], non_blocking=True)
        with gradients_added(parameter for parameter, _ in self.gradients):
            self.graph.replay()
            made = [gradient for _, gradient in self.gradients]
            # A step's next micro-batch overwrites what this one made.
            handed_over = torch._foreach_mul(made, 1.0) if self.is_followed else made
            for (parameter, _), gradient in zip(self.gradients, handed_over, strict=True):
                parameter.grad = gradient
        return self.values


def require_graphs(processes: PartialState, precision: Precision) -> None:
    """Require that a run's passes can be recorded.

    Raises:
        UserError: on anything but one GPU, or in fp16, whose loss scale changes.
    """
    if not is_alone_on_gpu(processes) or precision == "fp16":
        raise UserError(
            f"cuda_graphs is true, but this run has {processes.num_processes} process(es) on {processes.device.type} "
            f"and precision {precision}; passes are recorded on one GPU (cuda), in float32 or bf16: set it to false"
        )
