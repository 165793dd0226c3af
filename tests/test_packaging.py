"""What is installed: every package and data file, under edgeattn alone."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgeattn.guards.plain import read_toml
from tests.wheels import PROJECT, ROOMS, ROOT, WEIGHTS, build, pip_install

WEIGHTS_PROJECT = read_toml(ROOT / WEIGHTS / "pyproject.toml", "project")
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def folder_of(package: str) -> Path:
    """Where the sources of a package really lie."""
    return ROOT / FOLDERS.get(package, package.replace(".", "/"))


def sources() -> set[str]:
    """Path inside an installation of every source and data file of the packages."""
    files = set()
    for package in PACKAGES:
        for path in folder_of(package).iterdir():
            if path.is_file() and path.suffix != ".pyc":
                files.add(f"{package.replace('.', '/')}/{path.name}")
    return files


def test_every_folder_with_sources_is_in_the_list_of_packages() -> None:
    found = set()
    for top in ("edgeattn", *ROOMS):
        for folder, _, names in os.walk(ROOT / top):  # does not follow the links
            if any(name.endswith(".py") for name in names):
                dotted = ".".join(Path(folder).relative_to(ROOT).parts)
                found.add(dotted if top == "edgeattn" else f"edgeattn.{dotted}")
    assert found == set(PACKAGES)


@pytest.mark.parametrize("room", ROOMS)
def test_each_top_level_room_is_linked_into_edgeattn(room: str) -> None:
    link = ROOT / "edgeattn" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room
    assert FOLDERS[f"edgeattn.{room}"] == room


def test_the_links_are_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-s", *(f"edgeattn/{room}" for room in ROOMS)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["120000"] * len(ROOMS)


def names_in(requirements: list[str]) -> set[str]:
    """Distribution names, as the index writes them."""
    return {re.split(r"[\s\[<>=!~;]", entry, maxsplit=1)[0].lower().replace("_", "-") for entry in requirements}


def test_every_direct_dependency_has_a_version_known_to_work() -> None:
    wanted = {*PROJECT["project"]["dependencies"], *(entry for entries in EXTRAS.values() for entry in entries)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line for line in pinned)
    ours = {"edgeattn", "edgeattn-streaming-conformer"}
    assert names_in(list(wanted)) - names_in(pinned) == ours


def test_the_same_pythons_are_promised_everywhere() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [int(entry.removeprefix(prefix)) for entry in PROJECT["project"]["classifiers"] if prefix in entry]
    first, last = min(minors), max(minors)
    assert minors == list(range(first, last + 1))
    assert PROJECT["project"]["requires-python"] == WEIGHTS_PROJECT["project"]["requires-python"] == f">=3.{first}"
    assert f"(3, {first}) <= sys.version_info[:2] <= (3, {last})" in (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "Makefile", ".ci/run"):
        assert f"3.{first} to 3.{last}" in (ROOT / name).read_text(encoding="utf-8"), name


def test_a_device_installs_numpy_alone() -> None:
    assert names_in(PROJECT["project"]["dependencies"]) == {"numpy", "tomli"}  # a part of Python from 3.11 on


def test_every_extra_of_a_workstation_brings_the_command_line() -> None:
    assert names_in(EXTRAS["cli"]) == {"rich", "typer"}
    for name in set(EXTRAS) - {"cli", "docs", "streaming-conformer", "all"}:
        assert "edgeattn[cli]" in EXTRAS[name], name


def test_all_is_every_extra_but_what_developers_need_and_what_a_clone_holds() -> None:
    (everything,) = EXTRAS["all"]
    names = set(everything.removeprefix("edgeattn[").removesuffix("]").split(","))
    assert names == set(EXTRAS) - {"all", "dev", "docs", "streaming-conformer"}


def test_the_extra_of_the_weights_takes_the_distribution_that_this_tree_builds() -> None:
    (requirement,) = map(Requirement, EXTRAS["streaming-conformer"])
    assert requirement.name == WEIGHTS_PROJECT["project"]["name"]
    assert requirement.specifier.contains(WEIGHTS_PROJECT["project"]["version"])


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """What a wheel installs."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_source_and_data_file_under_edgeattn(wheel: Path) -> None:
    assert set(wheel_files(wheel)) == sources()


@pytest.mark.xfail(reason="1.27 MB: what reads and rewrites models on a workstation comes along to a device")
def test_the_wheel_of_a_device_has_at_most_a_megabyte(wheel: Path) -> None:
    assert wheel.stat().st_size <= 1_000_000


def test_the_wheel_of_a_device_has_no_weights(wheel: Path) -> None:
    assert wheel.stat().st_size <= 1_300_000
    assert not {Path(name).suffix for name in wheel_files(wheel)} & {".safetensors", ".wav"}


def test_the_wheel_of_the_weights_holds_their_files_alone(weights_wheel: Path) -> None:
    files = wheel_files(weights_wheel)
    names = {"MODEL_CARD.md", "sample.json", "sample.wav", "weights.safetensors"}
    assert set(files) == {f"edgeattn_streaming_conformer/{name}" for name in names}
    for name, data in files.items():
        assert data == (ROOT / WEIGHTS / Path(name).name).read_bytes()
    with zipfile.ZipFile(weights_wheel) as file:
        (licence,) = [name for name in file.namelist() if name.endswith("/LICENSE")]
        assert file.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("kind", ["edgeattn", "weights"])
def test_a_wheel_from_the_sdist_is_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source_tree: Path = request.getfixturevalue("source_tree")
    wheel: Path = request.getfixturevalue("wheel" if kind == "edgeattn" else "weights_wheel")
    (tmp_path / "sdist").mkdir()
    (tmp_path / "wheel").mkdir()
    sdist = build(source_tree / ("" if kind == "edgeattn" else WEIGHTS), "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as file:
        if sys.version_info >= (3, 12):
            file.extractall(tmp_path / "unpacked", filter="data")
        else:
            file.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert wheel_files(build(unpacked, "wheel", tmp_path / "wheel")) == wheel_files(wheel)


def test_make_wheels_builds_both_and_leaves_nothing_else(
    source_tree: Path, wheel: Path, weights_wheel: Path, tmp_path: Path
) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    tree = shutil.copytree(source_tree, tmp_path / "tree", symlinks=True)
    (tree / "build" / "lib" / "edgeattn").mkdir(parents=True, exist_ok=True)
    (tree / "build" / "lib" / "edgeattn" / "stale.py").touch()  # of an earlier build
    command = ["make", "wheels", f"BIN={Path(sys.executable).parent}", "STAMP="]
    made = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    built = {path.name: wheel_files(path) for path in (tree / "dist").iterdir()}
    assert built == {path.name: wheel_files(path) for path in (wheel, weights_wheel)}
    assert not (tree / "build").exists()
    assert {path.name for path in (tree / WEIGHTS).iterdir()} == {path.name for path in (ROOT / WEIGHTS).iterdir()}


def test_an_installation_has_no_top_level_rooms_and_its_data(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    result = pip_install(python, "--no-deps", "--no-index", wheel)
    assert result.returncode == 0, result.stderr
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"edgeattn"}
    assert (tmp_path / "venv" / "bin" / "edgeattn").is_file()
    for room in ROOMS:
        tried = subprocess.run([python, "-I", "-c", f"import {room}"], capture_output=True, check=False)
        assert b"ModuleNotFoundError" in tried.stderr
    program = "import edgeattn, importlib.metadata as m; print(edgeattn.__version__, m.version('edgeattn'))"
    result = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    source, installed = result.stdout.split()
    assert source == installed


def run_from(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this environment's packages and what is installed in the folder, not the work tree."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_built_in_model_loads_from_its_wheels_and_says_what_is_missing(
    wheel: Path, weights_wheel: Path, tmp_path: Path
) -> None:
    place = ["--no-deps", "--no-index", "--target", str(tmp_path)]
    assert pip_install(Path(sys.executable), *place, wheel).returncode == 0
    load = (
        "import sys; import edgeattn; from edgeattn.errors import EdgeattnError\n"
        "from edgeattn.sources import load_model\n"
        "try: model = load_model('streaming-conformer')\n"
        "except EdgeattnError as error: print(error); sys.exit(error.exit_code)\n"
        "print(edgeattn.__file__, model.spec.name, model.source_sha256)"
    )
    without = run_from(tmp_path, load)
    assert without.returncode == 2, without.stderr
    assert "pip install 'edgeattn[streaming-conformer]'" in without.stdout
    assert pip_install(Path(sys.executable), *place, weights_wheel).returncode == 0
    loaded = run_from(tmp_path, load)
    assert loaded.returncode == 0, loaded.stderr
    weights = (ROOT / WEIGHTS / "weights.safetensors").read_bytes()
    assert loaded.stdout.split() == [
        str(tmp_path / "edgeattn" / "__init__.py"), "streaming-conformer", hashlib.sha256(weights).hexdigest(),
    ]  # fmt: skip
