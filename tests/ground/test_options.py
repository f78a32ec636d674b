"""Options of toy commands: open groups, choices of classes, shorthands, words without a name, plugins."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from palenka.ground.command_line import parse
from palenka.ground.errors import UserError
from palenka.ground.help import help_of
from palenka.ground.registry import NameIn, OneOf, OpenSettings, Registry
from palenka.ground.settings import Command, Settings, read_as


class Term(Settings):
    """A toy term."""

    shorthand: ClassVar[str | None] = "weight"

    weight: float = 0.0
    """Its weight."""
    scale: float = 1.0
    """What its values are multiplied by."""


TERMS: Registry[type[Settings]] = Registry("term")
TERMS.register("near")(Term)


class Terms(OpenSettings):
    """An open group, whose members a registry names."""

    registry: ClassVar = TERMS

    temperature: float = 1.0
    """Of all terms."""


class Flat(Settings):
    """A shape without steps."""

    kind: Literal["flat"] = "flat"
    """Which shape."""
    height: float = 2.0
    """How high it is."""


class Steps(Settings):
    """A shape of steps."""

    kind: Literal["steps"] = "steps"
    """Which shape."""
    edges: tuple[int, ...] = ()
    """Where they are."""


SHAPES: Registry[type[Settings]] = Registry("shape")
SHAPES.register("flat")(Flat)
SHAPES.register("steps")(Steps)


class Toy(Command):
    """A toy command."""

    positional: ClassVar[tuple[str, ...]] = ("folder", "files")

    folder: Path = Path()
    """A word that stands first."""
    files: tuple[Path, ...] = ()
    """The words behind it."""
    terms: Terms = Terms()
    """What is added up."""
    shape: Annotated[Flat | Steps, OneOf(SHAPES, "flat")] = Flat(height=3.0)
    """A choice of classes."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Which layers."""
    product: dict[str, tuple[Any, ...]] = Field(default={})
    """Values by dotted name."""
    best: Annotated[str, NameIn(SHAPES)] = "flat"
    """A registered name."""
    quick: bool = False
    """A flag."""
    seeds: tuple[int, ...] = (0,)
    """Some numbers."""


class OfFiles(Command):
    """A command whose words without a name are files of options."""

    quick: bool = False
    """A flag."""


PLUGIN = """
from toy_registry import TERMS, Term

class Other(Term):
    'A term of {name}.'

TERMS.register('{name}')(Other)
"""


def toy(*arguments: str) -> Toy:
    return parse(Toy, arguments, "toy")


def term(settings: Toy) -> tuple[float, float]:
    near = settings.terms.entries["near"]
    return near.weight, near.scale


def test_words_without_an_option_go_where_the_command_says() -> None:
    given = toy("--quick", "here", "a.json", "--seeds", "1", "2", "--layers", "all")
    assert (given.folder, given.files) == (Path("here"), (Path("a.json"),))
    assert (given.quick, given.seeds, given.layers) == (True, (1, 2), "all")
    assert toy("here", "[a].json", "{b}", "null").files == (Path("[a].json"), Path("{b}"), Path("null"))
    assert toy("--folder", "here", "a.json", "b.json").files == (Path("a.json"), Path("b.json"))
    with pytest.raises(UserError, match=r"^more is not an option, and those .*: folder, files \(see toy --help\)$"):
        toy("--files", "a", "--quick", "here", "more")


HELP = """
terms: What is added up.
  --terms.temperature number (default: 1.0)
      Of all terms.

terms.near (a value alone is its weight): A toy term.
  --terms.near.weight number (default: 0.0)
      Its weight.
  --terms.near.scale number (default: 1.0)
      What its values are multiplied by.

shape: A choice of classes.
  --shape.kind choice of flat, steps (default: flat)
      Which of these it is.

shape (kind flat): A shape without steps.
  --shape.height number (default: 3.0)
      How high it is.

shape (kind steps): A shape of steps.
  --shape.edges list of whole numbers (default: none)
      Where they are.
"""


def test_help_has_the_members_of_open_groups_and_the_options_of_every_choice() -> None:
    assert help_of(Toy, "toy").startswith("usage: toy [FOLDER] [FILES ...] [--OPTION VALUE ...]\n\nA toy command.\n\n")
    assert help_of(Toy, "toy").endswith(HELP)
    assert "\n  --best choice of flat, steps (default: flat)\n" in help_of(Toy, "toy")


def test_a_name_that_is_not_registered_is_refused() -> None:
    assert toy("--best", "steps").best == "steps"
    registered = "best is round, but it should be 'flat', 'steps' or what a module named in plugins registers"
    with pytest.raises(UserError, match=rf"^{registered} \(see toy --help\)$"):
        toy("--best", "round")


@pytest.mark.parametrize(
    "seeds", [["0", "1"], ["[0, 1]"], ["0", "--seeds=1"], ["[0]", "--quick", "no", "--seeds", "1"]]
)
def test_lists_are_written_as_comes_naturally(seeds: list[str]) -> None:
    assert toy("--seeds", *seeds).seeds == (0, 1)
    assert toy("--seeds", "3").seeds == (3,)
    assert toy("--layers", "0", "2").layers == (0, 2)
    assert toy("--quick", "yes").quick


def test_an_option_may_name_an_entry_that_has_dots() -> None:
    assert toy("--product.a.b", "0.5", "x").product == {"a.b": (0.5, "x")}


def test_a_value_alone_is_a_groups_shorthand_and_leaves_its_other_options(tmp_path: Path) -> None:
    whole, bare = tmp_path / "whole.yaml", tmp_path / "bare.yaml"
    whole.write_text("terms: {near: {weight: 1, scale: 3}, temperature: 2}\n")
    bare.write_text("terms: {near: 0.5}\n")
    assert term(toy("--config", str(bare))) == (0.5, 1.0)
    assert term(toy("--terms.near", "0.25")) == (0.25, 1.0)
    assert term(toy("--config", str(whole), "--terms.near", "0.25")) == (0.25, 3.0)
    assert term(toy("--config", str(bare), "--terms.near.scale", "7")) == (0.5, 7.0)
    assert term(toy("--config", str(whole), "--config", str(bare))) == (0.5, 3.0)
    assert term(toy("--config", str(bare), "--config", str(whole))) == (1.0, 3.0)
    assert term(toy("--config", str(whole), "--terms.near", "{scale: 5}")) == (0.0, 5.0)
    assert toy("--config", str(whole), "--terms.near", "0.25").terms.temperature == 2


def test_the_nearest_option_is_found_in_open_groups_and_choices() -> None:
    for option, near in (("terms.naer", "terms.near"), ("scael", "terms.near.scale"), ("shape.edge", "shape.edges")):
        with pytest.raises(UserError, match=rf"{option} is not an option; did you mean '{near}'"):
            toy(f"--{option}", "1")


def test_paths_have_a_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "toy.yaml").write_text("folder: ~/here\nfiles: [$SCRATCH/a, '${SCRATCH}b', c]\n")
    settings = toy("--config", str(tmp_path / "toy.yaml"))
    assert settings.folder == Path("/home/me/here")
    assert settings.files == (Path("/scratch/a"), Path("/scratchb"), Path("c"))
    assert toy("~/x").folder == Path("/home/me/x")


def test_plugins_are_imported_before_settings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(TERMS, "_entries", dict(TERMS))
    monkeypatch.setitem(sys.modules, "toy_registry", SimpleNamespace(TERMS=TERMS, Term=Term))
    for name in ("one", "two"):
        (tmp_path / f"plugin_{name}.py").write_text(PLUGIN.format(name=name))
    (tmp_path / "toy.yaml").write_text("plugins: [plugin_one]\nterms: {one: 0.5}\n")
    with pytest.raises(SystemExit, match="0"):
        toy("--plugins", "plugin_two", "--config", "toy.yaml", "--help")
    assert "terms.two (a value alone is its weight): A term of two." in capsys.readouterr().out
    settings = toy("--config", "toy.yaml", "--terms.two", "1", "--plugins", "plugin_two", "plugin_one")
    assert settings.plugins == ("plugin_one", "plugin_two")
    assert settings.as_plain()["plugins"] == ["plugin_one", "plugin_two"]
    assert "plugins" not in toy().as_plain()
    with pytest.raises(UserError, match="plugin no_such cannot be imported"):
        toy("--plugins", "no_such")


@pytest.mark.parametrize(
    ("plugins", "remedy"),
    [
        (["mine", "other"], "give --plugins mine other$"),
        (["mine", "json"], "give --plugins mine$"),
        ([], "make it again"),
    ],
)
def test_a_record_that_needs_plugins_says_so(plugins: list[str], remedy: str) -> None:
    with pytest.raises(UserError, match=rf"^run/config.yaml cannot be read: .*toy_term: .*{remedy}"):
        read_as(Command, {"plugins": plugins, "toy_term": 0.3}, Path("run/config.yaml"))


@pytest.mark.parametrize("words", [["--quick", "maybe"], ["--quick=maybe"]])
def test_a_mistaken_boolean_is_named(words: list[str]) -> None:
    with pytest.raises(UserError, match="quick is maybe, but it should be a valid boolean"):
        parse(OfFiles, words, "toy")


@pytest.mark.parametrize("name", ["options.yaml", "options"])
def test_a_file_after_a_flag_is_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    assert parse(OfFiles, ["--quick", str(tmp_path / name)], "toy").quick
