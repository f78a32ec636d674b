"""Reading: the windows of each step that a process reads, in micro-batches, with their teacher signals."""

from collections.abc import Generator, Iterator

from accelerate import Accelerator

from palenka.data.corpus import Corpus
from palenka.data.signals.stream import Batch, EncodedBatch, ReadingOrder, read_batch, stream
from palenka.ground.errors import UserError
from palenka.train_student.copying import on_device
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import Teachers


class Reading:
    """The part of a run's windows that one process reads.

    Args:
        settings: of the run.
        accelerator: its processes; they share each global batch in equal parts.
        corpus: where the tokens are.
        order: the sequence of windows.
        teachers: whose signals are added.

    Attributes:
        micro_batch: windows in a forward pass.
        num_micro_batches: forward passes of a step.

    Raises:
        UserError: if micro-batches or processes do not divide a global batch evenly.
    """

    def __init__(
        self, settings: TrainSettings, accelerator: Accelerator, corpus: Corpus, order: ReadingOrder, teachers: Teachers
    ) -> None:
        self._accelerator, self._corpus, self._order, self._teachers = accelerator, corpus, order, teachers
        self._global_batch = settings.global_batch
        self._per_process = windows_of_process(settings, accelerator.num_processes)
        self.micro_batch = min(settings.micro_batch, self._per_process)
        self.num_micro_batches = self._per_process // self.micro_batch
        self.num_steps = len(order) // settings.global_batch

    def batches(self, first: int) -> Generator[EncodedBatch, None, None]:
        """The micro-batches from a step on, read ahead, on the device."""
        device = self._accelerator.device
        batches = stream(
            self._corpus,
            self._order,
            self._teachers.caches,
            self.slices(first),
            self._teachers.num_positions,
            pin_memory=device.type == "cuda",
        )
        return on_device(batches, device)

    def complete(self, batch: EncodedBatch) -> Batch:
        """A micro-batch on the device, with the signals of all teachers."""
        return self._teachers.complete(batch.to(self._accelerator.device))

    def at(self, start: int, stop: int) -> Batch:
        """The complete batch at some positions of the reading order."""
        caches, positions = self._teachers.caches, self._teachers.num_positions
        return self.complete(read_batch(self._corpus, self._order, caches, start, stop, positions))

    def slices(self, first: int) -> Iterator[tuple[int, int]]:
        """This process's part of every global batch, micro-batch by micro-batch, from a step on."""
        for step in range(first, self.num_steps + 1):
            for number in range(self.num_micro_batches):
                positions = self.positions(step, number)
                yield positions.start, positions.stop

    def positions(self, step: int, micro_batch: int) -> range:
        """The positions in the reading order of a step's micro-batch, counted from 0."""
        mine = (step - 1) * self._global_batch + self._accelerator.process_index * self._per_process
        return range(mine + micro_batch * self.micro_batch, mine + (micro_batch + 1) * self.micro_batch)


def windows_of_process(settings: TrainSettings, num_processes: int) -> int:
    """Windows of a global batch per process.

    Raises:
        UserError: if processes and micro-batches do not divide it evenly.
    """
    mine, left = divmod(settings.global_batch, num_processes)
    if left:
        raise UserError(
            f"global_batch is {settings.global_batch}, but there are {num_processes} processes; "
            "make it a multiple of their number"
        )
    if settings.micro_batch < mine and mine % settings.micro_batch:
        fits = max(size for size in range(1, settings.micro_batch) if mine % size == 0)
        raise UserError(
            f"micro_batch is {settings.micro_batch}, but a process has {mine} windows of each global batch, which it "
            f"does not divide; choose {fits}, or another divisor of {mine}"
        )
    return mine
