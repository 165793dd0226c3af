"""The root of ARM programs: what is asked of apt, dpkg, pip and qemu, and what becomes of it when one of them fails.

The tools are scripts that write down how they were called. The real ones assemble the root that test_qemu.py runs.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeattn.engines import LITERT
from edgeattn.errors import DeviceError, InputError, OutputError
from edgeattn.spec import to_json
from edgeattn.targets.devices import qemu_root
from edgeattn.targets.devices.qemu_root import FACTS, Root, default_path, prepare, python_of, read_root

TOOL = """\
#!{python} -E
import json, os, pathlib, sys
home, words = pathlib.Path({home!r}), sys.argv[1:]
with open(home / "calls", "a") as log: log.write(json.dumps([{name!r}, *words]) + "\\n")
broken = home / "broken-{name}"
if broken.exists() and broken.read_text().partition("|")[0] in words:
    sys.exit(broken.read_text().partition("|")[2])
option = lambda name: next(word.partition("=")[2] for word in words if word.startswith(name + "="))
"""
APT = """\
packages = [("libc6", "2.36-9", "arm64"), ("zlib1g", "1:1.2.13", "arm64"), ("media-types", "10.0.0", "all")]
if "--simulate" in words:
    for name, version, arch in packages: print(f"Inst {name} ({version} Debian:12.12/oldstable [{arch}]) []")
if "--download-only" in words:
    for name, version, arch in packages:
        pathlib.Path(option("Dir::Cache::archives"), f"{name}_{version.replace(':', '%3a')}_{arch}.deb").touch()
"""
DPKG = """\
assert pathlib.Path(words[1]).is_file(), words
(pathlib.Path(words[2]) / "usr/lib").mkdir(parents=True, exist_ok=True)
if "libc6" in words[1]: (pathlib.Path(words[2]) / "usr/lib/ld-linux-aarch64.so.1").write_text("loader")
"""
PIP = """\
pathlib.Path(words[words.index("--target") + 1]).mkdir(parents=True)
"""
QEMU = """\
asked = "machine" if "machine" in words[-1] else "engines"
print(json.dumps(["3.11.2", "2.36", "aarch64"] if asked == "machine" else {"numpy": "2.4.6", "onnxruntime": "1.32.0"}))
"""
TOOLS = {"apt-get": APT, "dpkg-deb": DPKG, "pip": PIP, "qemu-aarch64-static": QEMU}


@dataclass(frozen=True)
class Tools:
    """The scripts, and what was asked of them."""

    home: Path

    def calls(self, tool: str) -> list[list[str]]:
        log = self.home / "calls"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [words for name, *words in lines if name == tool]

    def fail(self, tool: str, word: str, message: str) -> None:
        """From here on a call with this word ends with status 1 and the message."""
        (self.home / f"broken-{tool}").write_text(f"{word}|{message}")

    def mend(self, tool: str) -> None:
        (self.home / f"broken-{tool}").unlink()

    def only(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        """Nothing but these is on PATH."""
        folder = self.home / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(self.home / name)
        monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    home = tmp_path / "tools"
    home.mkdir()
    for name, text in TOOLS.items():
        script = home / name
        script.write_text(TOOL.format(python=sys.executable, home=str(home), name=name) + text)
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(home / "pip"))  # run as `python -m pip`
    return Tools(home)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "roots" / "arm"


def beside(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir())


def test_packages_and_wheels_come_through_the_users_apt_and_pip(tools: Tools, place: Path) -> None:
    steps: list[str] = []
    made = prepare(place, steps.append)
    assert (made.path, made.reused) == (place, False)
    assert made.root == read_root(place)
    assert made.root.packages == {"libc6": "2.36-9", "zlib1g": "1:1.2.13", "media-types": "10.0.0"}
    assert made.root.distributions == {"numpy": "2.4.6", "onnxruntime": "1.32.0"}
    assert (made.root.python, made.root.glibc) == ("3.11.2", "2.36")
    assert "3 packages for arm64" in steps
    assert beside(place) == ["arm"]  # no download, nothing half-made
    for words in tools.calls("apt-get"):
        assert "APT::Architecture=arm64" in words
        assert not [word for word in words if word.startswith("Dir::Etc")]  # the user's own sources
        assert all(str(place.parent) in word for word in words if word.startswith(("Dir::State", "Dir::Cache")))
    assert len(tools.calls("dpkg-deb")) == 3
    (pip,) = tools.calls("pip")
    assert pip[:3] == ["-m", "pip", "install"]
    assert "--only-binary=:all:" in pip
    assert {"manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_36_aarch64"} <= set(pip)
    assert "manylinux_2_37_aarch64" not in pip  # newer than the root's C library
    assert pip[-3:] == list(made.root.requirements)
    assert not [word for words in (*tools.calls("apt-get"), pip) for word in words if "://" in word]


def test_what_crashes_engines_is_in_the_root(tools: Tools, place: Path) -> None:
    prepare(place)
    count = os.cpu_count() or 1
    processors = (place / "proc/cpuinfo").read_text()
    assert processors.count("CPU part\t: 0xd0b\n") == count  # Arm's number of the Cortex-A76
    for name in ("possible", "present"):
        text = (place / "sys/devices/system/cpu" / name).read_text()
        assert text == ("0\n" if count == 1 else f"0-{count - 1}\n")
    assert (place / "lib/ld-linux-aarch64.so.1").read_text() == "loader"  # though no package has /lib
    words = tools.calls("qemu-aarch64-static")[-1]
    assert words[: words.index("-L")] == ["-cpu", "cortex-a76"]


def test_the_python_of_a_root_runs_where_the_root_was_moved(tools: Tools, place: Path, tmp_path: Path) -> None:
    prepare(place)
    moved = place.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved / "python")
    for python in (moved / "python", tmp_path / "link"):
        subprocess.run([python, "x.py"], check=True, stdout=subprocess.DEVNULL)
        words = tools.calls("qemu-aarch64-static")[-1]
        assert words[words.index("-L") + 1] == str(moved)
        assert words[words.index("-0") + 1 :] == [str(moved / "python"), str(moved / "usr/bin/python3"), "x.py"]


def test_a_root_that_is_there_is_used_again_and_made_anew_on_demand(
    tools: Tools, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(place)
    before = len(tools.calls("apt-get"))
    assert prepare(place).reused
    assert len(tools.calls("apt-get")) == before
    assert not prepare(place, force=True).reused
    assert len(tools.calls("apt-get")) == 2 * before
    monkeypatch.setattr(qemu_root, "requirements", lambda: ("numpy>=3",))  # as after an upgrade of this machine's
    assert prepare(place).root.requirements == ("numpy>=3",)


def test_engines_are_wanted_as_new_as_those_that_make_bundles_here(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(LITERT, packages=(("no_such_engine", "no-such-engine"),), emulated="2.1")
    monkeypatch.setattr(qemu_root, "ENGINES", {row.name: row})
    numpy = pytest.importorskip("numpy").__version__
    assert qemu_root.requirements() == (f"numpy>={numpy}", "no-such-engine>=2.1")


@pytest.mark.parametrize(
    ("tool", "word", "message"),
    [
        ("apt-get", "update", r"lists cannot be updated: .*Could not resolve.*is there a network.*--apt-sources"),
        ("apt-get", "--simulate", r"apt does not find the packages: .*Could not resolve"),
        ("apt-get", "--download-only", r"packages cannot be downloaded: .*Could not resolve"),
        ("dpkg-deb", "--extract", r"libc6_2.36-9_arm64.deb cannot be unpacked: .*Could not resolve"),
        ("pip", "install", r"wheels cannot be had: .*Could not resolve.*wheels for aarch64"),
        ("qemu-aarch64-static", "-c", r"the emulated Python does not run: python ended with status 1: .*resolve"),
    ],
)
def test_a_tool_that_fails_leaves_what_was_there_and_no_half_of_a_root(
    tools: Tools, place: Path, tool: str, word: str, message: str
) -> None:
    tools.fail(tool, word, "warming up\nE: Could not resolve 'a.host'\n")
    with pytest.raises(DeviceError, match=message):
        prepare(place)
    assert beside(place) == [".arm.downloads"]
    tools.mend(tool)
    before = prepare(place)
    tools.fail(tool, word, "E: Could not resolve 'a.host'")
    with pytest.raises(DeviceError, match=message):
        prepare(place, force=True)
    assert read_root(place) == before.root
    assert "arm" in beside(place)
    assert ".arm.partial" not in beside(place)


def test_a_warning_about_the_lists_is_told_where_packages_are_missing(tools: Tools, place: Path) -> None:
    script = tools.home / "apt-get"
    script.write_text(
        script.read_text()
        + "if 'update' in words: print(\"W: Temporary failure resolving 'a.host'\", file=sys.stderr)\n"
    )
    assert not prepare(place).reused  # another source may have had all
    tools.fail("apt-get", "--simulate", "E: Unable to locate package python3-minimal")
    with pytest.raises(DeviceError, match=r"Unable to locate .*of the lists it said: W: Temporary failure resolving"):
        prepare(place, force=True)


def test_what_was_downloaded_is_there_for_the_next_try(tools: Tools, place: Path) -> None:
    tools.fail("pip", "install", "ERROR: no network")
    with pytest.raises(DeviceError, match="wheels cannot be had"):
        prepare(place)
    kept = place.parent / ".arm.downloads" / "archives" / "zlib1g_1%3a1.2.13_arm64.deb"
    assert kept.is_file()
    tools.mend("pip")
    prepare(place)
    assert not kept.exists()


def test_an_emulator_that_shows_this_machines_processor_is_refused(tools: Tools, place: Path) -> None:
    script = tools.home / "qemu-aarch64-static"
    script.write_text(script.read_text().replace('"2.36", "aarch64"', '"2.36", "x86_64"'))
    with pytest.raises(DeviceError, match="runs on x86_64, not on aarch64"):
        prepare(place)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_root_is_left_alone(tools: Tools, place: Path, kind: str) -> None:
    place.parent.mkdir()
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="is no root for qemu-aarch64-static, and not empty"):
            prepare(place, force=force)
    assert (place if kind == "file" else place / "mine").read_text() == "mine"
    assert not tools.calls("apt-get")


def test_an_empty_folder_and_a_damaged_root_are_replaced(tools: Tools, place: Path) -> None:
    place.mkdir(parents=True)
    prepare(place)
    (place / FACTS).write_text("{")
    assert not prepare(place).reused
    assert read_root(place) is not None
    assert beside(place) == ["arm"]


@pytest.mark.parametrize("damage", ["no facts", "no json", "a list", "another format", "no python"])
def test_a_root_that_is_not_whole_is_none(tools: Tools, place: Path, damage: str) -> None:
    made = prepare(place).root
    facts = place / FACTS
    if damage == "no facts":
        facts.unlink()
    elif damage == "no python":
        python_of(place).unlink()
    else:
        other = json.dumps(to_json(replace(made, format=2)))
        facts.write_text({"no json": "{", "a list": "[]", "another format": other}[damage])
    assert read_root(place) is None


def test_too_little_room_is_told_before_anything_is_fetched(
    tools: Tools, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    with pytest.raises(OutputError, match=r"100 MB free there, 419 MB are needed.*--root"):
        prepare(place)
    assert not tools.calls("apt-get")


def test_a_place_that_cannot_be_written_is_told(tools: Tools, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        prepare(tmp_path / "file" / "arm")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["apt-get", "dpkg-deb"], r"no qemu-aarch64-static on this machine: apt install qemu-user-static"),
        (["qemu-aarch64-static", "dpkg-deb"], r"no apt-get on this machine: .*install apt"),
        (["qemu-aarch64-static", "apt-get"], r"no dpkg-deb on this machine: .*install dpkg"),
    ],
)
def test_a_tool_that_is_missing_is_named_with_what_installs_it(
    tools: Tools, place: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], message: str
) -> None:
    tools.only(monkeypatch, *there)
    with pytest.raises(InputError, match=message):
        prepare(place)
    assert not place.exists()


def test_a_python_without_pip_is_told_how_to_get_it(tools: Tools, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(InputError, match=r"has no pip: .* -m ensurepip"):
        prepare(place)


def test_other_sources_of_apt_take_the_place_of_this_machines(tools: Tools, place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file of apt sources"):
        prepare(place, apt_sources=tmp_path / "none.list")
    sources = tmp_path / "mine.sources"
    sources.write_text("Types: deb\n")
    prepare(place, apt_sources=sources)
    for words in tools.calls("apt-get"):
        assert f"Dir::Etc::SourceList={sources}" in words
        assert "Dir::Etc::SourceParts=/dev/null" in words


def test_two_at_once_make_one_root(tools: Tools, place: Path) -> None:
    place.parent.mkdir()
    handle = os.open(place.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as the one that is at work
    waits, reused = threading.Event(), []
    second = threading.Thread(target=lambda: reused.append(prepare(place, lambda _: waits.set()).reused))
    try:
        second.start()
        assert waits.wait(30.0)
        assert not tools.calls("apt-get")
        os.close(handle)
        handle = -1
        second.join(60.0)
    finally:
        if handle >= 0:
            os.close(handle)
    assert reused == [False]
    assert prepare(place).reused


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_it_is_kept_in_the_users_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_path() == home / ".cache" / "edgeattn" / "qemu-aarch64"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard wants ignored
    assert default_path() == home / ".cache" / "edgeattn" / "qemu-aarch64"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert default_path() == Path("/var/cache/me/edgeattn/qemu-aarch64")


def test_facts_go_through_json() -> None:
    root = Root("cortex-a76", "3.11.2", "2.36", ("numpy>=2",), {"libc6": "1"}, {"numpy": "2.0"})
    assert to_json(root)["packages"] == {"libc6": "1"}
