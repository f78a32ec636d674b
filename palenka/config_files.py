"""`palenka configs list` and `palenka configs copy NAME [DIR]`: the YAML files that come with Palenka.

A checkout has them in configs/; an installed package copies them to the paths in README.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from palenka.ground.command_line import parse, run, subcommand
from palenka.ground.console import console, plain_table
from palenka.ground.errors import UserError, system_error
from palenka.ground.files import write_whole
from palenka.ground.lock import sole_writer
from palenka.ground.settings import Command, Printing, read_yaml

CONFIGS = Path(__file__).parent / "configs"
ALL = "all"

_COMMANDS = {
    "list": "the YAML files of corpora, models, caches, studies and grids that come with Palenka",
    "copy": "copy one of them, or a folder, with the files that it names, to configs/ or another folder",
}


class ListSettings(Printing):
    """List the YAML files that come with Palenka, with descriptions."""


class CopySettings(Command):
    """Copy YAML files that come with Palenka, and the files that they name, to be changed and run."""

    positional: ClassVar[tuple[str, ...]] = ("name", "directory")

    name: str
    """A file or a folder of the list, such as students/babyllama1-58m or babylm-cpu; or all."""
    directory: Path = Path("configs")
    """Folder for them; they keep their subfolders, so that they find each other."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(_configs, arguments)


def _configs(arguments: Sequence[str]) -> None:
    name, rest = subcommand("palenka configs", _COMMANDS, arguments)
    if name == "list":
        _list(parse(ListSettings, rest, "palenka configs list"))
    else:
        settings = parse(CopySettings, rest, "palenka configs copy")
        copied = copy(settings.name, settings.directory)
        for path in copied:
            console(soft_wrap=True).print(str(path))


def _list(settings: ListSettings) -> None:
    files = {_name(path): _about(path) for path in _files()}
    if settings.as_json:
        sys.stdout.write(json.dumps(files, indent=1, ensure_ascii=False) + "\n")
        return
    table = plain_table("name", "what it is")
    for name, said in files.items():
        table.add_row(name, said)
    console().print(table)
    console().print("palenka configs copy NAME copies one, or a folder, to configs/; all copies all of them.")


def copy(name: str, directory: Path) -> list[Path]:
    """Copy files that come with Palenka; returns the paths of all of them, including those that existed before.

    Args:
        name: of a file or a folder among them, or `ALL`.
        directory: in which they keep their folders.

    Raises:
        UserError: if there is none of this name, or another file is in its place; nothing is copied then.
    """
    wanted = list(dict.fromkeys(path for chosen in _chosen(name) for path in _with_named(chosen)))
    targets = {directory / path.relative_to(CONFIGS): path.read_bytes() for path in wanted}
    try:
        for target, content in targets.items():
            if target.exists() and (not target.is_file() or target.read_bytes() != content):
                raise UserError(f"{target} exists and is another file; choose another folder, or delete it")
        for target, content in targets.items():
            with sole_writer(target, wait=True):
                if not target.exists():
                    write_whole(target, content)
    except OSError as error:
        raise system_error(f"cannot copy to {directory}", error) from error
    return list(targets)


def _files() -> list[Path]:
    return sorted(CONFIGS.rglob("*.yaml"))


def _name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def _chosen(name: str) -> list[Path]:
    """The files of a name.

    Raises:
        UserError: if there is none; lists similar ones.
    """
    plain = name.removesuffix(".yaml").removeprefix("configs/").strip("/")
    found = [path for path in _files() if plain in (_name(path), ALL) or _name(path).startswith(f"{plain}/")]
    if not found:
        last = plain.rpartition("/")[2]
        alike = [_name(path) for path in _files() if last and last in _name(path)]
        hint = f"did you mean {', '.join(alike[:4])}?" if alike else "`palenka configs list` shows all"
        raise UserError(f"{name!r} is no file or folder that comes with Palenka; {hint}")
    return found


def _with_named(path: Path) -> Iterator[Path]:
    """A file and the built-in files that it names, such as the stages of a study."""
    yield path
    configs = CONFIGS.resolve()
    for value in _texts(read_yaml(path)):
        named = (path.parent / value).resolve() if value.endswith(".yaml") else None
        if named and named.is_file() and named.is_relative_to(configs):
            yield from _with_named(CONFIGS / named.relative_to(configs))


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _about(path: Path) -> str:
    """The first sentence of a file's opening comment; without one, its first option."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence = " ".join(comment).split(". ")[0].rstrip(".")
    return sentence or _kind(read_yaml(path))


def _kind(content: dict[str, Any]) -> str:
    """The stage of a file, recognised by its options."""
    if "sources" in content:
        return "a corpus"
    if "model" in content:
        return "a student's training" if content.get("teachers") else "a model's training, without teachers"
    return "a capture" if {"teacher", "ensemble"} & content.keys() else "a study"


if __name__ == "__main__":
    sys.exit(main())
