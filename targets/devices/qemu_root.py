"""A folder of ARM programs that qemu's user mode runs on this machine: Python, numpy and the engines for aarch64.

Debian's arm64 packages come through apt, wheels through pip, each with the user's own configuration, sources and
signatures. Both are unpacked into the folder and nowhere else: nothing is installed, and no step takes root.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeattn.engines import ENGINES
from edgeattn.errors import DeviceError, EdgeattnError, InputError, OutputError
from edgeattn.guards.children import bound
from edgeattn.guards.outputs import user_cache, writing
from edgeattn.spec import from_json, to_json

FORMAT = 1
FACTS = "edgeattn-root.json"
MAX_FACTS = 2**20  # bytes
EMULATOR = "qemu-aarch64-static"
CPU = "cortex-a76"  # of a Raspberry Pi 5: int8 dot products, half precision
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")  # the wheels' own libraries need the last
SITE = "usr/lib/python3/dist-packages"
NUMPY = "numpy", "1.26"  # the oldest that is of use
NEEDED = 400 * 2**20  # bytes while it is made; what is left at the end takes about 240 MB
OLDEST_GLIBC = 17  # of the wheels' platform tags, 2.17 being manylinux2014
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
# Linux's /proc/cpuinfo of a Cortex-A76. Engines ask it, and files of /sys, for the processor's kind, and die of SIGSEGV
# where they read those of the machine that emulates.
PROCESSOR = (
    "processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
)
# Relative to itself: the folder is renamed when it is done. Libraries of this machine are none for those programs.
PYTHON = (
    "#!/bin/sh\n"
    '# Python for aarch64, on an emulated {cpu}.\nroot=$(dirname "$(readlink -f "$0")") || exit 1\n'
    'export PYTHONHOME="$root/usr" PYTHONNOUSERSITE=1\n'
    'exec {emulator} -cpu {cpu} -L "$root" -U LD_PRELOAD -U LD_LIBRARY_PATH -0 "$root/python" '
    '"$root/usr/bin/python3" "$@"\n'
)


@dataclass(frozen=True)
class Root:
    """What is in the folder, as the file :data:`FACTS` in it tells.

    Attributes:
        cpu: the processor that is emulated.
        python: its version, as that of ``glibc``.
        requirements: what was asked of pip.
        packages: of Debian, with their versions.
        distributions: of Python, with their versions, as they were found when all was imported there.
    """

    cpu: str
    python: str
    glibc: str
    requirements: tuple[str, ...]
    packages: Mapping[str, str]
    distributions: Mapping[str, str]
    format: int = FORMAT


@dataclass(frozen=True)
class Prepared:
    """The folder, and whether it was there already."""

    path: Path
    root: Root
    reused: bool


def default_path() -> Path:
    """Of the root in the user's cache."""
    return user_cache() / "qemu-aarch64"


def python_of(path: Path) -> Path:
    """The aarch64 Python of a root, a program of this machine."""
    return path / "python"


def read_root(path: Path) -> Root | None:
    """What a root holds; None where there is no whole one of this format."""
    try:
        with (path / FACTS).open("rb") as file:
            root = from_json(Root, json.loads(file.read(MAX_FACTS)))
    except (OSError, ValueError, EdgeattnError):
        return None
    return root if root.format == FORMAT and python_of(path).is_file() else None


def require_emulator(kind: type[EdgeattnError]) -> None:
    """Raise an error with the command that installs it where qemu's user mode is not on this machine."""
    if shutil.which(EMULATOR) is None:
        raise kind(f"no {EMULATOR} on this machine: apt install qemu-user-static (Fedora: qemu-user-static, too)")


def requirements() -> tuple[str, ...]:
    """What is asked of pip: engines at least as new as those that make bundles here."""
    wanted = []
    engines = ((row.distribution, row.emulated) for row in ENGINES.values() if row.emulated is not None)
    for name, oldest in (NUMPY, *engines):
        version = oldest
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
        wanted.append(f"{name}>={version}")
    return tuple(wanted)


def prepare(
    path: Path | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    apt_sources: Path | None = None,
    force: bool = False,
) -> Prepared:
    """Assemble the root, or find it whole.

    It is made beside its place and renamed: what is at ``path`` is whole at any time. What apt downloaded stays beside
    it until all is done, so that a second try goes on from there; pip has a cache of its own.

    Args:
        path: of the folder; None for that in the user's cache.
        on_step: is told what begins.
        apt_sources: a sources.list (or .sources) with Debian's or Ubuntu's arm64 packages, in place of this machine's.
        force: assemble it again.

    Raises:
        InputError: if a tool is missing on this machine, or something else lies at ``path``.
        DeviceError: if packages or wheels cannot be had, or do not run.
        OutputError: if there is no room, or nothing may be written.
    """
    path = default_path() if path is None else path.absolute()
    require_emulator(InputError)
    if apt_sources is not None and not apt_sources.is_file():
        raise InputError(f"{apt_sources}: no such file of apt sources")
    wanted = requirements()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent, on_step):
            partial, downloads = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.downloads")
            there = read_root(path)
            if there is not None and there.requirements == wanted and not force:
                shutil.rmtree(downloads, ignore_errors=True)  # of one that was to be made again, and was not
                return Prepared(path, there, reused=True)
            _require_tools()
            if path.exists() and not (path / FACTS).exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(f"{path}: is no root for {EMULATOR}, and not empty: name another folder, or remove it")
            if (free := shutil.disk_usage(path.parent).free) < NEEDED:
                raise OutputError(
                    f"{path}: {free / 1e6:.0f} MB free there, {NEEDED / 1e6:.0f} MB are needed; make room, or name "
                    "another folder with --root"
                )
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            try:
                partial.mkdir()
                made = _assemble(partial, downloads, wanted, on_step, apt_sources)
                _swap(partial, path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return Prepared(path, made, reused=False)


@contextlib.contextmanager
def _alone(parent: Path, on_step: Callable[[str], None]) -> Iterator[None]:
    """One at a time; the second finds what the first has made. The lock is the folder's own and ends with us."""
    import fcntl  # of Linux, as qemu's user mode; the commands are imported on other systems, too

    handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("waiting for another one that prepares it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _require_tools() -> None:
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise InputError(f"no {tool} on this machine: the root is made of Debian's packages; install {package}")
    with warnings.catch_warnings():  # setuptools', which minds that somebody imported distutils before it
        warnings.simplefilter("ignore")
        pip = importlib.util.find_spec("pip")
    if pip is None:
        raise InputError(f"{sys.executable} has no pip: {sys.executable} -m ensurepip")


def _assemble(
    root: Path,
    downloads: Path,
    wanted: Sequence[str],
    on_step: Callable[[str], None],
    apt_sources: Path | None,
) -> Root:
    for folder in ("lists/partial", "archives/partial"):
        (downloads / folder).mkdir(parents=True, exist_ok=True)
    (downloads / "status").touch()  # nothing is installed yet: all that a package needs is wanted
    packages = _unpack_packages(root, downloads, on_step, apt_sources)
    _write_processor(root)
    python = python_of(root)
    python.write_text(PYTHON.format(cpu=CPU, emulator=EMULATOR), encoding="ascii")
    python.chmod(0o755)
    on_step("starting Python for aarch64")
    program = "import json, platform as p; print(json.dumps([p.python_version(), p.libc_ver()[1], p.machine()]))"
    version, glibc, machine = _ask(root, program, "the emulated Python does not run")
    if machine != "aarch64":
        raise DeviceError(f"the emulated Python says that it runs on {machine}, not on aarch64")
    on_step("wheels for aarch64: " + ", ".join(wanted))
    _install_wheels(root, wanted, version, glibc)
    on_step("importing the engines there")
    modules = (NUMPY[0], *(row.module for row in ENGINES.values() if row.emulated is not None))
    program = (
        f"import json, importlib, importlib.metadata as m; [importlib.import_module(n) for n in {modules!r}]; "
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
    )
    found = _ask(root, program, "the engines do not run there")
    made = Root(CPU, version, glibc, tuple(wanted), packages, found)
    (root / FACTS).write_text(json.dumps(to_json(made), indent=1), encoding="utf-8")
    shutil.rmtree(downloads)
    return made


def _ask(root: Path, program: str, problem: str) -> Any:
    """What a line of Python prints there, as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # this machine's
    return json.loads(_run([str(python_of(root)), "-c", program], problem, environment=environment, folder=root).stdout)


def _unpack_packages(
    root: Path, downloads: Path, on_step: Callable[[str], None], apt_sources: Path | None
) -> dict[str, str]:
    """Packages with all that they depend on; their names and versions."""
    apt = ["apt-get", "--quiet", "--yes", *_apt_options(downloads, apt_sources)]
    hint = "is there a network, and do the sources of apt have arm64? --apt-sources takes a file of others"
    on_step("lists of apt's packages for arm64")
    updated = _run([*apt, "update"], "apt's lists cannot be updated", hint)
    if warnings := _last_words(updated, "[WE]: (?!Some index)"):  # that source alone, and the others may have all
        hint = f"of the lists it said: {warnings}; {hint}"
    plan = _run([*apt, "--simulate", "install", *PACKAGES], "apt does not find the packages", hint).stdout
    chosen = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", plan, re.MULTILINE)
    on_step(f"{len(chosen)} packages for arm64")
    _run([*apt, "--download-only", "install", *PACKAGES], "packages cannot be downloaded", hint)
    for name, version, arch in chosen:
        archive = downloads / "archives" / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
        _run(["dpkg-deb", "--extract", str(archive), str(root)], f"{archive.name} cannot be unpacked")
    loader = root / "lib" / "ld-linux-aarch64.so.1"
    if not loader.exists():  # where /lib is a link to /usr/lib, which a package makes that is not here
        loader.parent.mkdir(exist_ok=True)
        loader.symlink_to("../usr/lib/ld-linux-aarch64.so.1")
    return {name: version for name, version, _ in chosen}


def _apt_options(downloads: Path, sources: Path | None) -> list[str]:
    """The user's configuration and sources of apt, for another machine, and with lists and packages of its own."""
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Dir::State": str(downloads),
        "Dir::State::status": str(downloads / "status"),
        "Dir::Cache": str(downloads),
        "Dir::Cache::archives": str(downloads / "archives"),
    }
    if sources is not None:
        options |= {"Dir::Etc::SourceList": str(sources.absolute()), "Dir::Etc::SourceParts": "/dev/null"}
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _write_processor(root: Path) -> None:
    """What the engines read of a processor, as Linux tells it on the emulated one."""
    count = os.cpu_count() or 1
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(
        "".join(PROCESSOR.format(index=index, features=FEATURES) for index in range(count)), encoding="ascii"
    )
    folder = root / "sys" / "devices" / "system" / "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        (folder / name).write_text("0\n" if count == 1 else f"0-{count - 1}\n", encoding="ascii")


def _install_wheels(root: Path, wanted: Sequence[str], python: str, glibc: str) -> None:
    newest = int(glibc.split(".")[1])
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(OLDEST_GLIBC, newest + 1)] + [
        "manylinux2014_aarch64"
    ]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [word for platform in platforms for word in ("--platform", platform)]
    # Those two of a user's configuration speak of installing into an environment, which this does not.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    hint = "is there a network, and does pip's index have wheels for aarch64?"
    _run([*command, "--target", str(root / SITE), *wanted], "wheels cannot be had", hint, environment)


def _swap(partial: Path, path: Path) -> None:
    """Put the new one in its place; an older one is away for two renames at most."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _run(
    command: Sequence[str],
    problem: str,
    hint: str = "",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """A tool, run to its end.

    Raises:
        DeviceError: if it fails: the problem, its own last words, and the hint.
    """
    done = subprocess.run(
        bound(command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**(os.environ if environment is None else environment), "LC_ALL": "C"},
        cwd=folder,
        check=False,
    )
    if done.returncode != 0:
        words = _last_words(done, r"E:|Err:|ERROR|error") or _last_words(done, "") or "it said nothing"
        tool = Path(command[0]).name
        raise DeviceError(f"{problem}: {tool} ended with status {done.returncode}: {words}" + f"; {hint}" * bool(hint))
    return done


def _last_words(done: subprocess.CompletedProcess[str], begins: str) -> str:
    """The last line that begins so; empty if there is none."""
    lines = (line.strip() for line in (done.stderr or done.stdout).splitlines())
    return next((line for line in reversed([*lines]) if line and re.match(begins, line)), "")
