"""What is installed: every package and data file, under edgeattn alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.wheels import ROOMS, ROOT, build, pip_install

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
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
    wanted = set(PROJECT["project"]["dependencies"])
    for name, extra in PROJECT["project"]["optional-dependencies"].items():
        wanted |= set(extra) if name != "all" else set()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line for line in pinned)
    assert names_in(list(wanted)) - names_in(pinned) == set()


def test_all_is_every_other_extra_but_the_one_of_the_site() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.removeprefix("edgeattn[").removesuffix("]").split(",")) == set(extras) - {"all", "docs"}


@pytest.fixture(scope="module")
def sdist(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source_tree, "sdist", tmp_path_factory.mktemp("sdist"))


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """What a wheel installs."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_source_and_data_file_under_edgeattn(wheel: Path) -> None:
    assert set(wheel_files(wheel)) == sources()


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as file:
        if sys.version_info >= (3, 12):
            file.extractall(tmp_path, filter="data")
        else:
            file.extractall(tmp_path)
    (unpacked,) = tmp_path.iterdir()
    out = tmp_path / "out"
    out.mkdir()
    assert wheel_files(build(unpacked, "wheel", out)) == wheel_files(wheel)


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
