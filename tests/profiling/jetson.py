"""A Jetson as far as its files and programs go: nvpmodel, jetson_clocks, tegrastats and sudo as small shell scripts.

They print what the real ones print on Jetson Linux 35 and 36 (Jetson Linux Developer Guide, Platform Power and
Performance, and tegrastats Utility) and keep the state of the board in files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODES = {0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}
REBOOTS = 3  # the mode that takes cores away
LINE = (
    "09-21-2026 16:47:06 RAM 1954/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [0%@883,0%@883,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] APE 200 cpu@48.062C tj@48.218C VDD_IN 4523mW/4523mW "
    "VDD_CPU_GPU_CV 524mW/524mW VDD_SOC 1373mW/1373mW"
)

NVPMODEL = """#!/bin/sh
cd '{board}' && echo "nvpmodel $*" >> log
case "$1" in
-q)
    echo "NVPM WARN: fan mode is not set!" >&2
    echo "NV Power Mode: $(sed -n "s/^$(cat mode) //p" modes)"
    cat mode ;;
-p)
    echo "NVPM VERB: Config file: /etc/nvpmodel.conf"
    sed 's/^\\([0-9]*\\) \\(.*\\)/NVPM VERB: POWER_MODEL: ID=\\1 NAME=\\2/' modes
    echo "NVPM VERB: PM_CONFIG: DEFAULT=15W(0)" ;;
-m)
    if [ -e stuck ]; then echo "NVPM ERROR: Error writing to gpu"; exit 255; fi
    if [ "$2" = {reboots} ]; then
        echo "NVPM WARN: Golden image context is already created"
        echo "NVPM WARN: Reboot required for changing to this power mode: $2"
        echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm: "
        read -r answer; echo "answer $answer" >> log
        case "$answer" in YES|yes) echo rebooted >> log;; esac
        echo "NVPM ERROR: optMask is 1, no request for power mode"; exit 255
    fi
    echo "$2" > mode.new && mv mode.new mode ;;
esac
"""
JETSON_CLOCKS = """#!/bin/sh
board='{board}'
echo "jetson_clocks $1" >> "$board/log"
case "$1" in
--store)
    if [ -e "$2" ]; then echo "File $2 already exists. Can I overwrite it? Y/N:"; read -r answer; exit 1; fi
    cp "$board/clocks" "$2" ;;
--restore)
    if [ ! -e "$2" ]; then echo "Error: $2 file not found !"; exit 1; fi
    cp "$2" "$board/clocks.new" && mv "$board/clocks.new" "$board/clocks" ;;
*)
    if [ -e "$board/hot" ]; then echo "Error: Failed to max GPU frequency!"; exit 0; fi
    echo "1020000000 1020000000" > "$board/clocks" ;;
esac
"""
TEGRASTATS = """#!/bin/sh
while [ -e '{board}/line' ]; do cat '{board}/line'; sleep 0.02; done
"""
SUDO = """#!/bin/sh
[ "$1" = -n ] || exit 99
shift
exec "$@"
"""
LOCKED, FREE = "1020000000 1020000000", "306000000 1020000000"  # lowest and highest Hz of the GPU


@dataclass(frozen=True)
class Jetson:
    """The board's state."""

    folder: Path

    @property
    def programs(self) -> Path:
        """The folder to put on PATH."""
        return self.folder / "bin"

    @property
    def mode(self) -> int:
        return int((self.folder / "mode").read_text())

    @property
    def clocks(self) -> str:
        return (self.folder / "clocks").read_text().strip()

    @property
    def log(self) -> list[str]:
        """What was run, without questions about the state."""
        lines = (self.folder / "log").read_text().splitlines() if (self.folder / "log").exists() else []
        return [line for line in lines if not line.startswith(("nvpmodel -q", "nvpmodel -p"))]

    def breaks(self, how: str) -> None:
        """From now on: no mode can be set ("stuck"), or clocks cannot be locked ("hot")."""
        (self.folder / how).touch()

    def tells(self, line: str | None) -> None:
        """What tegrastats prints from now on; None ends it."""
        if line is None:
            (self.folder / "line").unlink()
        else:
            (self.folder / "fresh").write_text(f"{line}\n")
            (self.folder / "fresh").replace(self.folder / "line")

    def put(self, name: str, text: str) -> None:
        """A program."""
        self.programs.mkdir(exist_ok=True)
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)


def make_jetson(folder: Path) -> Jetson:
    """A board in mode 0 whose clocks are free."""
    folder.mkdir(exist_ok=True)
    board = Jetson(folder)
    (folder / "modes").write_text("".join(f"{number} {name}\n" for number, name in MODES.items()))
    (folder / "mode").write_text("0\n")
    (folder / "clocks").write_text(f"{FREE}\n")
    board.tells(LINE)
    for name, text in (
        ("nvpmodel", NVPMODEL), ("jetson_clocks", JETSON_CLOCKS), ("tegrastats", TEGRASTATS), ("sudo", SUDO),
    ):  # fmt: skip
        board.put(name, text.replace("{board}", str(folder)).replace("{reboots}", str(REBOOTS)))
    return board
