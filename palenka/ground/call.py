"""The call that made an output: machine, time, command and versions."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from palenka.ground.processes import available_cores
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    import torch

_PACKAGES = ("palenka", "torch", "transformers", "accelerate", "zarr", "numpy")
"""Packages whose versions may affect results."""


class Call(Settings):
    """A call of a program that writes an output."""

    date: str
    """When it began: ISO 8601, UTC."""
    command: str
    """The command, ready to be typed again."""
    hardware: str
    """The devices of all its processes."""
    versions: dict[str, str]
    """Versions of Python, of Palenka and of numerical packages, by name."""


def this_call(device: "torch.device", processes: int = 1) -> Call:
    """The call of this process.

    Args:
        device: that it computes on.
        processes: of its launch.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Call(date=date, command=_command(), hardware=_hardware(device, processes), versions=versions)


def _command() -> str:
    program = Path(sys.argv[0]).name
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if program == "__main__.py" and spec is not None:
        program = f"python -m {spec.name.removesuffix('.__main__')}"
    return " ".join([program, shlex.join(sys.argv[1:])]).strip()


def _hardware(device: "torch.device", processes: int) -> str:
    if device.type == "cuda":
        import torch

        return f"{processes} × {torch.cuda.get_device_name(device)}"
    cores = available_cores()
    chip = f"{_processor()}, {cores} core{'s' if cores != 1 else ''}"
    chip = f"{chip}, {device.type}" if device.type != "cpu" else chip
    return chip if processes == 1 else f"{chip}, {processes} processes"


def _processor() -> str:
    """The processor's name if the system provides it, or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), "") or platform.processor() or platform.machine()
