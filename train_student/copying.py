"""Copying ahead: a GPU copies the next micro-batch on a separate stream during the current one."""

import contextlib
from collections.abc import Generator, Iterator

import torch

from palenka.data.signals.stream import EncodedBatch


def on_device(
    batches: Generator[EncodedBatch, None, None], device: torch.device
) -> Generator[EncodedBatch, None, None]:
    """The batches on a device, in order; on a GPU the next one is copied ahead, from page-locked memory."""
    with contextlib.closing(batches):
        yield from _moved(batches, device)


def _moved(batches: Iterator[EncodedBatch], device: torch.device) -> Iterator[EncodedBatch]:
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[EncodedBatch, torch.cuda.Event] | None = None
    for batch in batches:
        before = ahead
        with torch.cuda.stream(copies):
            ahead = batch.to(device), copies.record_event()
        if before is not None:
            yield _received(*before)
    if ahead is not None:
        yield _received(*ahead)


def _received(batch: EncodedBatch, arrived: torch.cuda.Event) -> EncodedBatch:
    """A batch for the current stream, which waits for its copy; the host does not."""
    current = torch.cuda.current_stream(batch.tokens.device)
    current.wait_event(arrived)
    for part in batch.tensors():
        # Its memory must not be reused for the next copy before this stream has finished with it.
        part.record_stream(current)
    return batch
