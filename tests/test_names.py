"""One name to install: what a wheel holds, and that a user's own data.py or eval beside a script harm nothing."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SECONDS = 300
ROOMS = ("cache_teachers", "configs", "data", "eval", "train_student")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def call(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder; what it printed, once it ended well."""
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(sources: Path, target: str, folder: Path) -> Path:
    """What hatchling makes of a source tree."""
    call([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], sources)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout."""
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    """The files that a wheel installs, without its own records."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_installs_palenka_and_all_of_it_and_nothing_else(wheel: Path) -> None:
    there = {
        str((Path(folder) / file).relative_to(ROOT)): (Path(folder) / file).read_bytes()
        for folder, _, files in os.walk(ROOT / "palenka", followlinks=True)
        for file in files
        if "__pycache__" not in folder
    }
    assert contents(wheel) == there
    assert {"palenka/py.typed", "palenka/configs/demo/study.yaml", "palenka/data/windows.py"} <= there.keys()
    for kind in ("css", "j2"):
        assert any(name.startswith("palenka/report/") and name.endswith(f".{kind}") for name in there), kind


def test_a_wheel_from_the_sdist_holds_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (sources,) = (tmp_path / "sources").iterdir()
    assert contents(build(sources, "wheel", tmp_path / "wheel")) == contents(wheel)


@pytest.fixture(scope="session", params=["wheel", "editable"])
def programs(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that palenka was installed into; what it needs is taken from this one."""
    folder = tmp_path_factory.mktemp("environment")
    call([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    built = wheel if request.param == "wheel" else build(ROOT, "wheel:editable", tmp_path_factory.mktemp("editable"))
    call([sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", built], folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # Read first. Only folders: an installation of palenka there that is editable, as ours is, counts no more, nor does
    # what another .pth file names, so each folder is named.
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "0-dependencies.pth").write_text("\n".join(packages))
    own = ROOT if request.param == "editable" else site
    found = call([python, "-c", "import palenka; print(palenka.__file__)"], folder).strip()
    assert found == str(own / "palenka" / "__init__.py")
    return python.parent


@pytest.fixture
def folder_of_a_user(tmp_path: Path) -> Path:
    """A folder whose own modules have the names of our rooms; each says that it was imported."""
    (tmp_path / "eval").mkdir()
    for file in ("cache_teachers.py", "configs.py", "data.py", "eval/__init__.py", "train_student.py"):
        (tmp_path / file).write_text("import sys\nOWNER = 'user'\nsys.stderr.write('a module of the user\\n')\n")
    return tmp_path


def test_no_bare_name_is_importable(programs: Path, tmp_path: Path) -> None:
    script = f"import importlib.util as u; print([name for name in {ROOMS} if u.find_spec(name)])"
    assert call([programs / "python", "-c", script], tmp_path).strip() == "[]"


def test_the_command_line_and_its_children_work_beside_a_users_modules(
    programs: Path, grid_file: Path, folder_of_a_user: Path
) -> None:
    assert "study" in call([programs / "palenka", "--help"], folder_of_a_user)
    smaller = ["--product", "{objective.logit: [0.9]}", "--finalists.count", "0"]
    told = call([programs / "palenka", "grid", "--config", grid_file, *smaller], folder_of_a_user)
    grid = json.loads((grid_file.parent / "grid" / "grid.json").read_text())
    assert set(grid["points"]["runs"]) == {"points/control-seed0", "points/logit0.9-seed0"}
    assert grid["points"]["failures"] == {}
    logs = [log.read_text() for log in (grid_file.parent / "grid" / "logs").rglob("*.log")]
    assert len(logs) == 2  # each point ran in a process of its own
    assert not any("a module of the user" in said for said in (told, *logs))


def test_modules_and_launches_work_beside_a_users_modules(
    programs: Path, grid_file: Path, folder_of_a_user: Path
) -> None:
    python, student = str(programs / "python"), ["--config", str(grid_file.with_name("student.yaml"))]
    launch = [python, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    told = [
        call([python, "-m", "palenka", "train", *student, "--output", "by_module"], folder_of_a_user),
        call([*launch, "-m", "palenka.train_student", *student, "--output", "by_launch"], folder_of_a_user),
    ]
    assert not any("a module of the user" in said for said in told)
    weights = [folder_of_a_user / name / "model.safetensors" for name in ("by_module", "by_launch")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_script_imports_palenka_and_its_own_modules(programs: Path, folder_of_a_user: Path) -> None:
    script = folder_of_a_user / "script.py"
    script.write_text(
        "import palenka, configs, data, eval\n"
        "from palenka.data.windows import WindowRule\n"
        "import palenka.eval, palenka.train_student\n"
        "print(configs.OWNER, data.OWNER, eval.OWNER, WindowRule().length)\n"
    )
    assert "user user user 128" in call([programs / "python", script], folder_of_a_user)


@pytest.mark.parametrize("room", ["cache_teachers", "data", "eval", "train_student"])
def test_in_a_checkout_the_rooms_are_programs(room: str) -> None:
    assert "usage: palenka" in call([sys.executable, "-m", room, "--help"], ROOT)
