"""The base of every configuration: frozen, checked, unknown keys refused."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

Precision = Literal["float32", "bf16", "fp16"]
"""The type that a model computes in."""


class Settings(BaseModel):
    """A frozen group of settings; each class of settings stands beside the code that it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def as_plain(self) -> dict[str, object]:
        """These settings as plain JSON values, defaults included."""
        return self.model_dump(mode="json")

    def write_yaml(self, path: Path) -> None:
        """Write the resolved settings, defaults included, so that a run says how it was made."""
        aside = path.with_name(f"{path.name}.partial")
        aside.write_text(yaml.safe_dump(self.as_plain(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        aside.replace(path)
