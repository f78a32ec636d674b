"""Trackers: TensorBoard and Weights & Biases beside metrics.jsonl; a resumed run stays the same run there."""

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from palenka.ground.errors import UserError
from palenka.ground.files import write_whole
from palenka.train_student.settings import TrainSettings

_WANDB_ID = "wandb.id"


def require_trackers(settings: TrainSettings) -> None:
    """Require that the packages of the trackers are installed.

    Raises:
        UserError: with a missing one.
    """
    for package in settings.trackers:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"tracker {package} is not installed; pip install {package}, or take it out of trackers")


def start_trackers(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Start or resume a run at every tracker.

    Raises:
        UserError: if one fails, for instance wandb without a login.
    """
    wandb: dict[str, object] = {}
    if "wandb" in settings.trackers and accelerator.is_main_process:
        output = settings.output
        wandb = {"name": output.name, "id": _wandb_id(output), "resume": "allow", "dir": str(output)}
    try:
        accelerator.init_trackers("palenka", config=_flat(settings.as_plain()), init_kwargs={"wandb": wandb})
    except Exception as error:  # each tracker has its own errors
        accelerator.trackers = []  # a tracker that has not started cannot finish
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tracker {' or '.join(settings.trackers)} does not start ({reason}); log in (`wandb login`), set "
            "WANDB_MODE=offline, or take it out of trackers"
        ) from error


def _wandb_id(output: Path) -> str:
    """The run's id at wandb, drawn on first use."""
    path = output / _WANDB_ID
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8").strip()


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings by dotted name, with values that trackers accept."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
