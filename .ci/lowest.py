"""Print pip constraints that pin each dependency to the lowest version that pyproject.toml allows.

torch is left out: its old wheels on PyPI are CUDA builds of several gigabytes, so the Makefile's version is tested.
"""

import re
import tomllib
from pathlib import Path

pyproject = Path(__file__).parents[1] / "pyproject.toml"
project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
    bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")  # noqa: T201
