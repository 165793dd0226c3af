"""What a Jetson says of itself, as its tools print it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.runtimes.jetson import PowerMode, l4t_release, parse_power_mode, power_mode


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", PowerMode(0, "MAXN")),
        ("NVPM WARN: fan mode is not set to cool\nNV Power Mode: MAXN_SUPER\n2\n", PowerMode(2, "MAXN_SUPER")),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", PowerMode(2, "MODE_15W_6CORE")),
        (
            "NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n12\nNVPM VERB: PARAM",
            PowerMode(12, "MODE_15W_6CORE"),
        ),
    ],
)
def test_the_mode_is_read_from_what_each_release_prints(text: str, mode: PowerMode) -> None:
    assert parse_power_mode(text) == mode


@pytest.mark.parametrize("text", ["", "NV Power Mode: MAXN\n", "0\n", "NVPM ERROR: no mode\n"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected the lines 'NV Power Mode: NAME' and NUMBER"):
        parse_power_mode(text)


@pytest.mark.parametrize(
    ("script", "mode"),
    [("echo 'NV Power Mode: 15W'; echo 0", PowerMode(0, "15W")), ("exit 1", None), ("echo nothing known", None)],
)
def test_a_program_that_fails_tells_no_mode(
    script: str, mode: PowerMode | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvpmodel").write_text(f"#!/bin/sh\n[ $1 = -q ] || exit 9\n{script}\n")
    (tmp_path / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power_mode() == mode


def test_another_machine_has_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power_mode() is None
    assert l4t_release(tmp_path / "nv_tegra_release") == ""


def test_the_release_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "nv_tegra_release"
    path.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n# KERNEL_VARIANT: oot\n")
    assert l4t_release(path) == "# R36 (release), REVISION: 4.3, GCID: 38968081"
