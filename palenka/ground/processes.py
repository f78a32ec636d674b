"""The processes of a launch, which share one output, and the device that each computes on.

accelerate reads the environment and a user's accelerate configuration. Settings there that would change results are
refused here; the trainer sets all others explicitly.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from palenka.ground.errors import UserError
from palenka.ground.memory import keep_freed_memory
from palenka.ground.stopping import Stopped, ends_with, stopped_by_the_system

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where a model computes; auto is a GPU (cuda, or mps on a Mac) if there is one."""


def _word(given: object) -> object:
    return str(given).lower() if isinstance(given, bool) else given


Compile = Annotated[Literal["auto", "true", "false"], BeforeValidator(_word)]
"""Whether a model's blocks are compiled; auto is so on a GPU (cuda)."""

_AT_FIRST = os.getpid(), os.getppid()
"""This process and its launcher, recorded as early as possible: the launcher may end before torch is loaded."""
_is_watched = False
_ANSWER_SECONDS = 60.0

_HARMLESS = dict.fromkeys(
    [
        *(f"ACCELERATE_USE_{name}" for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")),
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    ],
    ("", "0", "false", "no", "off"),
) | {"ACCELERATE_MIXED_PRECISION": ("", "no", "fp16", "bf16"), "ACCELERATE_TORCH_DEVICE": ("",)}
"""The allowed values of a variable; others would change how results are computed."""


def available_cores() -> int:
    """CPU cores that this process may use, possibly shared with others."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """CPU cores for this process, as many as torch uses.

    OMP_NUM_THREADS if it is set (by a grid for points that run at once, and by launchers for their processes), or this
    process's share, within its launch on this machine, of all that it may use.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    launched = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, available_cores() // max(1, int(launched) if launched.isdecimal() else 1))


def open_processes(device: Device | None = None) -> "PartialState":
    """This process among those of its launch, and its device.

    Args:
        device: where it computes; default: the device opened before, or auto.

    Raises:
        UserError: if the device does not exist, the environment would change results, or this is one of several
            processes that do not see each other: each would write the same output.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    _refuse_environment()
    if device is None and PartialState._shared_state:
        return PartialState()
    chosen = _available(device or "auto")
    if chosen == "cpu":
        keep_freed_memory()
    # Without `cpu`, each process launched on a machine without a GPU would believe that it is alone.
    on_cpu = chosen == "cpu" and ("LOCAL_RANK" in os.environ or _is_cpu_asked())
    with _ended_with_launcher() if "LOCAL_RANK" in os.environ else nullcontext():
        state = PartialState(cpu=on_cpu)
    if state.distributed_type == DistributedType.NO:
        state.device = torch.device(chosen)
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if launched != state.num_processes or state.device.type != chosen:
        raise UserError(
            f"{launched} process(es) were launched for {chosen}, but this one sees {state.num_processes} on "
            f"{state.device.type}; several processes need device cpu or cuda, and one device for all that they do"
        )
    return state


@contextmanager
def _ended_with_launcher() -> Iterator[None]:
    """From here on, this process stops when its launcher has ended, for instance after a kill.

    Inside, the processes of the launch connect to each other through their launcher, and would wait for minutes without
    it.
    """
    global _is_watched
    if _is_watched:
        yield
        return
    process, launcher = _AT_FIRST
    with stopped_by_the_system():
        ends_with(launcher if process == os.getpid() else os.getppid())  # a notebook's launcher forks its processes
        _require_launcher()
        _is_watched = True
        yield


def _require_launcher() -> None:
    """Stop if the launcher ended before this process could notice: its rendezvous port is closed then.

    Raises:
        Stopped: if it has ended.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(address, timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise Stopped(Signals.SIGTERM, f"the launcher of this process has ended ({error})") from None


def is_compiled(asked: Compile, device: "torch.device") -> bool:
    """Whether to compile a model on a device."""
    return asked == "true" or (asked == "auto" and device.type == "cuda")


def is_alone_on_gpu(processes: "PartialState | Accelerator") -> bool:
    """Whether this process has no others beside it, and computes on a GPU (cuda)."""
    return bool(processes.device.type == "cuda" and processes.num_processes == 1)


def _available(device: Device) -> str:
    """The name of an existing device.

    Raises:
        UserError: if the requested one does not exist.
    """
    import torch

    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    names = [*(name for name, is_there in gpus.items() if is_there and not _is_cpu_asked()), "cpu"]
    if device == "auto":
        return names[0]
    if device not in names:
        why = "ACCELERATE_USE_CPU is set" if _is_cpu_asked() else f"torch finds only {', '.join(names)} here"
        raise UserError(f"device is {device}, but {why}; choose {' or '.join(names)}, or auto")
    return device


def _is_cpu_asked() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def _refuse_environment() -> None:
    for name, harmless in _HARMLESS.items():
        value = os.environ.get(name, "")
        if value.lower() not in harmless:
            raise UserError(
                f"{name} is {value} in the environment, but settings alone decide how a model computes; unset it, "
                "or take it out of the configuration of accelerate"
            )
