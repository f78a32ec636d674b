"""The rooms: each imports only itself and those above it in docs/design.md's table; no settings class has a twin."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest
from pydantic import BaseModel

import palenka
from palenka.ground.settings import Settings

ROOT = Path(__file__).parents[1]
FRONT = "palenka"


def rooms_of(design: str) -> list[str]:
    """The rooms in the table, from top to bottom, as they are imported."""
    section = design.split("\n## Rooms\n")[1].split("\n## ")[0]
    folders = re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE)
    return [folder.replace("/", ".") if folder.startswith(FRONT) else f"{FRONT}.{folder}" for folder in folders]


ROOMS = rooms_of((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))


def room_of(name: str) -> str | None:
    """The room that a dotted name lies in; None for what is not ours."""
    return max((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), key=len, default=None)


def imported(module: str, source: str) -> Iterator[str]:
    """The full names of all that a module imports, wherever in it."""
    package = module.rsplit(".", 1)[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def against_the_table(module: str, source: str) -> list[str]:
    """What a module imports though its room may not: from a room below it, or by a bare name."""
    own = room_of(module)
    assert own is not None, f"{module} lies in no room of docs/design.md"
    allowed = ROOMS[: ROOMS.index(own) + 1]
    bare = {room.removeprefix(f"{FRONT}.") for room in ROOMS} - {FRONT}
    return [
        name
        for name in imported(module, source)
        if ((room := room_of(name)) and room not in allowed) or name.split(".")[0] in bare
    ]


def modules() -> Iterator[tuple[str, Path]]:
    """Our modules by name: palenka with the rooms that it links to."""
    for top in sorted((ROOT / FRONT).iterdir()):
        for path in [top] if top.suffix == ".py" else sorted(top.resolve().rglob("*.py")):
            inside = path.relative_to(top.resolve()).with_suffix("").parts if top.is_dir() else ()
            yield ".".join(part for part in (FRONT, top.stem, *inside) if part != "__init__"), path


def test_no_room_imports_one_below_it() -> None:
    found = {module: against_the_table(module, path.read_text(encoding="utf-8")) for module, path in modules()}
    assert len(found) > 90
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("palenka.data.windows", "import palenka.eval.scoring", ["palenka.eval.scoring"]),
        ("palenka.data.windows", "def f():\n    from palenka import train_student", ["palenka.train_student"]),
        ("palenka.ground.lock", "if TYPE_CHECKING:\n    from palenka.data import x", ["palenka.data.x"]),
        ("palenka.train_student.run", "from palenka.study import Study", ["palenka.study.Study"]),
        ("palenka.train_student.run", "from ..eval import results", ["palenka.eval.results"]),
        ("palenka.eval.measure", "from data.corpus import Corpus", ["data.corpus.Corpus"]),
        ("palenka.eval.measure", "from palenka.train_student import run\nfrom . import results\nimport numpy", []),
        ("palenka.study", "import palenka.grid.running\nimport palenka.ground.errors", []),
    ],
)
def test_an_import_against_the_table_is_found(module: str, source: str, expected: Sequence[str]) -> None:
    assert against_the_table(module, source) == expected


def test_the_table_names_every_folder_and_the_links_lead_to_them() -> None:
    assert ROOMS[0] == "palenka.ground"
    assert ROOMS[-1] == FRONT
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert {f"{FRONT}.{folder}" for folder in folders - {FRONT}} == set(ROOMS) - {FRONT, "palenka.ground"}
    for folder in (folders - {FRONT}) | {"configs"}:
        link = ROOT / FRONT / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..", folder)


def all_settings(base: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for below in base.__subclasses__():
        if below.__module__.startswith(f"{FRONT}."):
            yield below
        yield from all_settings(below)


def twins(classes: Iterable[type[BaseModel]]) -> list[set[str]]:
    """Classes that have one name, or the same fields without inheriting any of them from one class."""
    found = []
    for first, second in combinations(sorted(set(classes), key=str), 2):
        shared = [base for base in first.__mro__ if base in second.__mro__ and issubclass(base, BaseModel)]
        declared_twice = first.model_fields and not any(base.model_fields for base in shared)
        same_fields = declared_twice and first.model_fields.keys() == second.model_fields.keys()
        if same_fields or first.__name__ == second.__name__:
            found.append({str(first), str(second)})
    return found


def test_no_settings_class_has_a_twin() -> None:
    for module in pkgutil.walk_packages(palenka.__path__, f"{FRONT}."):
        importlib.import_module(module.name)
    classes = set(all_settings())
    assert len(classes) > 20
    assert twins(classes) == []


def test_a_twin_is_found() -> None:
    class Windows(Settings):
        length: int = 128

    class Cut(Settings):
        length: int = 64

    class Longer(Windows):
        """One of several kinds of windows."""

    assert twins([Windows, Cut]) == [{str(Windows), str(Cut)}]
    assert twins([Windows, Longer]) == []
    assert len(twins([Windows, type("Windows", (Settings,), {})])) == 1
