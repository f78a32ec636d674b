"""The base of every configuration: frozen, checked, unknown keys refused; and its YAML files."""

from pathlib import Path
from typing import ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from palenka.ground.errors import UserError
from palenka.ground.files import write_whole

Precision = Literal["float32", "bf16", "fp16"]
"""The type that a model computes in."""


def read_yaml(path: Path) -> dict[str, object]:
    """The options in a YAML file.

    Raises:
        UserError: if it cannot be read, or holds something else than options.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read configuration {path}: {error.strerror}; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).replace(' in "<unicode string>",', " at").split())
        raise UserError(f"configuration {path} is not YAML: {where}; fix it there") from None
    if not isinstance(content, dict):
        raise UserError(f"configuration {path} has no options: it should hold lines such as `output: runs/mine`")
    return content


class Settings(BaseModel):
    """A frozen group of settings; each class of settings stands beside the code that it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    shorthand: ClassVar[str | None] = None
    """The field that a bare value in place of the group sets, if there is one."""

    def as_plain(self) -> dict[str, object]:
        """These settings as plain JSON values, defaults included."""
        return self.model_dump(mode="json")

    def write_yaml(self, path: Path) -> None:
        """Write the resolved settings, defaults included, so that a run says how it was made."""
        write_whole(path, yaml.safe_dump(self.as_plain(), sort_keys=False, allow_unicode=True))
