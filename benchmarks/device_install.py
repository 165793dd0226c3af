"""What a device installs: the bytes of the wheel, and of a new environment with numpy, one engine and that wheel.

    make wheels
    python benchmarks/device_install.py [--engine PACKAGE] [--wheel FILE]

One row for this machine, a virtual environment without pip, and one for 64-bit ARM boards: the wheels that pip takes
for their platform, unpacked here. Each once with ``pip install --no-compile`` and once with the bytecode that pip makes
by default, as disk blocks (what ``du -s`` counts), in MB of 10^6 bytes. Nothing is removed by hand. Exit code 1 if the
wheel has more than 1 MB or the board's environment with LiteRT, without bytecode, more than 110 MB.
"""

from __future__ import annotations

import argparse
import compileall
import platform
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_WHEEL, MAX_BOARD = 1e6, 110e6  # bytes
LITERT, BOARD = "ai-edge-litert", "board, aarch64"
GLIBC = (17, 27, 28)  # of the platform tags that wheels for boards carry: manylinux_2_NN


def disk_bytes(folder: Path) -> int:
    """Blocks of all files and folders, each file once however many names it has."""
    found = {path.lstat().st_ino: path.lstat().st_blocks for path in (folder, *folder.rglob("*"))}
    return 512 * sum(found.values())


def largest(site: Path, count: int = 4) -> str:
    """The packages that take most of it."""
    sizes: Counter[str] = Counter()
    for path in site.iterdir():
        if path.is_dir() and not path.name.endswith(".dist-info"):
            sizes[path.name] = disk_bytes(path)
    shown = [*sizes.most_common(count), ("edgeattn", sizes["edgeattn"])]
    return ", ".join(f"{name} {size / 1e6:.1f}" for name, size in dict(shown).items())


def install(*arguments: str | Path) -> None:
    """Run this interpreter's pip."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def here(folder: Path, *packages: str | Path) -> Path:
    """A new virtual environment on this machine; where its packages are."""
    venv.create(folder, with_pip=False, symlinks=True)
    install("--python", folder / "bin" / "python", "install", "--no-compile", *packages)
    (site,) = (folder / "lib").glob("python*/site-packages")
    return site


def board(folder: Path, *packages: str | Path) -> Path:
    """What pip would install on a 64-bit ARM board with this version of Python."""
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_2_{glibc}_aarch64")]
    only = [*platforms, "--platform", "manylinux2014_aarch64", "--only-binary", ":all:"]
    install("install", "--no-compile", *only, "--target", folder, *packages)
    return folder


def main() -> int:
    """Print the table; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=LITERT, help="its distribution (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, help="default: the one in dist/")
    asked = parser.parse_args()
    wheel = asked.wheel or next((ROOT / "dist").glob("edgeattn-*.whl"), None)
    if wheel is None:
        sys.exit("no wheel in dist/: make wheels")
    sizes = {"wheel": wheel.stat().st_size}
    print(f"{wheel.name}: {sizes['wheel'] / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in ((f"this machine, {platform.machine()}", here), (BOARD, board)):
            folder = Path(scratch, name)
            site = make(folder, wheel.resolve(), "numpy", asked.engine)
            sizes[name], parts = disk_bytes(folder), largest(site)
            compileall.compile_dir(str(site), quiet=2)
            print(f"{name}: {sizes[name] / 1e6:.1f} MB, {disk_bytes(folder) / 1e6:.1f} MB with bytecode; {parts}")
    bounds = {"wheel": MAX_WHEEL, **({BOARD: MAX_BOARD} if asked.engine == LITERT else {})}
    for name, bound in bounds.items():
        print(f"{name} <= {bound / 1e6:.0f} MB: {'ok' if sizes[name] <= bound else 'MISSED'}")
    return int(any(sizes[name] > bound for name, bound in bounds.items()))


if __name__ == "__main__":
    sys.exit(main())
