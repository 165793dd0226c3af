"""Targets: the shipped facts are complete and sourced, and nothing unknown is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.errors import InputError
from edgeattn.targets import get_target, head_dim_note, host_target, list_targets, supports_2_4
from edgeattn.targets.host import parse_cpuinfo

FOLDER = Path(__file__).parents[2] / "targets"
BUILT_IN = sorted(path.stem for path in FOLDER.glob("*.toml"))

MINE = """
name = "my-board"
title = "a board of mine"
backends = ["litert"]
default_deadline_ms = 40

[precisions]
litert = ["fp32", "int8"]

[cpu]
arch = "aarch64"
cores = 2
isa = ["neon"]
source = "its data sheet"

[memory]
bytes = 1073741824
source = "its data sheet"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my-board.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_file_is_named_after_its_target(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert target.title
    assert target.cores >= 1


def test_the_list_is_this_machine_and_then_every_file() -> None:
    assert [target.name for target in list_targets()] == ["cpu", *BUILT_IN]


def test_no_two_targets_share_a_name_or_an_alias() -> None:
    names = [name for target in list_targets() for name in (target.name, *target.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_group_of_facts_says_where_it_comes_from(name: str) -> None:
    target = get_target(name)
    groups = (
        target.cpu,
        target.memory,
        target.accelerator,
        target.peaks,
        target.kernels,
        target.power,
        *target.software,
    )
    assert all(len(group.source) > 10 for group in groups if group is not None)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("jetson", "jetson-orin-nano"), ("mobile", "android-arm64"), ("raspberry-pi", "raspberry-pi-5")],
)
def test_an_alias_means_its_target(alias: str, name: str) -> None:
    assert get_target(alias) == get_target(name)


CAPABILITIES = {"jetson-xavier-nx": "7.2", "jetson-thor": "11.0"}  # NVIDIA: CUDA GPU compute capability; else Orin's


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name.startswith("jetson")])
def test_a_jetson_takes_tensorrt_first_for_its_compute_capability(name: str) -> None:
    target = get_target(name)
    assert target.backends[0] == "tensorrt"
    assert target.compute_capability == CAPABILITIES.get(name, "8.7")


@pytest.mark.parametrize(
    ("name", "sms", "mhz"),
    [
        ("jetson-orin-nano", 8, 625),
        ("jetson-orin-nano-super", 8, 1020),
        ("jetson-orin-nx", 8, 918),
        ("jetson-agx-orin", 16, 1300),
    ],
)
def test_a_jetsons_peaks_follow_from_its_multiprocessors_and_clock(name: str, sms: int, mhz: int) -> None:
    # 128 lanes per Ampere SM; its four tensor cores make 1024 half multiply-adds a cycle, twice that in int8.
    peaks = get_target(name).peaks
    assert peaks is not None
    cycles = sms * mhz * 1e6
    assert peaks.fp32 == pytest.approx(cycles * 2 * 128, rel=1e-3)  # the files give four digits
    assert peaks.fp16 == pytest.approx(cycles * 2 * 1024, rel=1e-3)
    assert peaks.int8 == pytest.approx(cycles * 2 * 2048, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name.startswith("jetson")])
def test_a_jetson_says_which_releases_of_its_software_there_are(name: str) -> None:
    target = get_target(name)
    assert target.power is not None
    assert target.power.modes
    assert target.software
    assert all(release.tensorrt and release.cuda and release.python for release in target.software)


CLUSTERED = [name for name in BUILT_IN if get_target(name).cpu.clusters]


@pytest.mark.parametrize("name", [name for name in CLUSTERED if get_target(name).backends[0] != "tensorrt"])
def test_the_peaks_of_a_processor_are_the_sum_over_its_cores(name: str) -> None:
    target = get_target(name)
    assert target.peaks is not None
    for precision in ("fp32", "fp16", "int8"):
        rates = [getattr(core, precision) for core in target.cpu.clusters]
        wanted = sum(
            core.cores * core.clock_hz * rate
            for core, rate in zip(target.cpu.clusters, rates, strict=True)
            if rate is not None
        )
        stated = getattr(target.peaks, precision)
        assert stated == (pytest.approx(wanted, rel=1e-3) if None not in rates else None)


@pytest.mark.parametrize("name", CLUSTERED)
def test_the_clock_of_a_processor_is_that_of_its_fastest_core(name: str) -> None:
    cpu = get_target(name).cpu
    assert cpu.clock_hz == max(core.clock_hz for core in cpu.clusters)


def test_every_device_that_can_be_asked_for_is_there() -> None:
    devices = {
        "jetson-orin-nano", "jetson-orin-nano-super", "jetson-orin-nx", "jetson-agx-orin", "jetson-xavier-nx",
        "jetson-thor", "raspberry-pi-4", "raspberry-pi-5", "intel-n100", "intel-core-ultra-155h",
        "intel-core-ultra-258v", "x86-avx2", "x86-avx512-vnni", "pixel-8", "pixel-9", "galaxy-s24", "snapdragon-695",
    }  # fmt: skip
    assert devices <= set(BUILT_IN)


def test_a_near_miss_is_suggested_and_the_valid_names_are_listed() -> None:
    with pytest.raises(InputError, match=r"unknown target 'jetsn', did you mean 'jetson'.*Valid: android-arm64, cpu, "):
        get_target("jetsn")


def test_a_users_file_is_a_target(tmp_path: Path) -> None:
    target = get_target(write(tmp_path, MINE))
    assert (target.name, target.cores, target.memory_bytes) == ("my-board", 2, 2**30)
    assert target.precisions == {"litert": ("fp32", "int8")}
    assert target.default_deadline_ms == 40.0
    assert target == get_target(str(tmp_path / "my-board.toml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 2", "coers = 2", r"cpu: unknown field 'coers'; known: arch, cores.*did you mean 'cores'"),
        ("cores = 2", "", r"target\.cpu: field 'cores' is missing"),
        ("cores = 2", 'cores = "2"', r"target\.cpu\.cores: expected int, got '2'"),
        ("cores = 2", "cores = 0", r"target\.cpu: cores must be at least 1, got 0"),
        ('["neon"]', '["noen"]', r"target\.cpu\.isa\[0\]: expected one of .*neon.*, got 'noen'"),
        (
            'backends = ["litert"]',
            'backends = ["tflite"]',
            r"backends\[0\]: expected one of .*litert.*, got 'tflite'",
        ),
        ('backends = ["litert"]', "backends = []", "at least one engine"),
        ('litert = ["fp32", "int8"]', 'openvino = ["fp32"]', r"given for each of the backends \(litert\)"),
        ('litert = ["fp32", "int8"]', "litert = []", "precisions of litert must not be empty"),
        ('litert = ["fp32", "int8"]', 'litert = ["int3"]', r"precisions\.litert\[0\]: expected one of fp32"),
        ("default_deadline_ms = 40", "default_deadline_ms = 0", "default_deadline_ms must be positive"),
        (
            "default_deadline_ms = 40",
            "default_deadline_ms = nan",
            "default_deadline_ms: expected a finite number, got nan",
        ),
        ('name = "my-board"', 'name = "../board"', r"a name is lower-case letters.*'\.\./board'"),
        ('name = "my-board"', "name = ", "not a TOML file"),
        ('source = "its data sheet"', "", "field 'source' is missing"),
        (
            "[memory]",
            '[kernels]\nchannels = 0\nhead_dim = 8\nsource = "x"\n[memory]',
            "channels must be at least 1, got 0",
        ),
        ("[memory]", '[kernels]\nchannels = 8\nhead_dim = -8\nsource = "x"\n[memory]', "head_dim must be at least 1"),
        ("[memory]", "[power]\nmods = []\n[memory]", r"power: unknown field 'mods'; known: modes.*mean 'modes'"),
        ("[memory]", '[power]\nmodes = []\nwatts = [9]\nsource = "x"\n[memory]', "watts must be two positive numbers"),
        ("[memory]", '[power]\nmodes = []\nwatts = [9, 7]\nsource = "x"\n[memory]', "watts must stand smallest first"),
        ("[memory]", '[peaks]\nfp32 = 0\nsource = "x"\n[memory]', "peaks: fp32 must be positive, got 0"),
        ("[memory]", '[peaks]\nint8 = nan\nsource = "x"\n[memory]', "peaks.int8: expected a finite number, got nan"),
        ("[memory]", '[[software]]\nname = "x"\n[memory]', r"software\[0\]: field 'source' is missing"),
        ("bytes = 1073741824", "bytes = -1", "memory: bytes must be positive, got -1"),
        ("bytes = 1073741824", "bytes_per_second = inf", "bytes_per_second: expected a finite number, got inf"),
        ("cores = 2", "cores = 2\nclock_hz = 0", "cpu: clock_hz must be positive"),
        (
            "[memory]",
            '[[cpu.clusters]]\nname = "a core"\ncores = 3\nclock_hz = 1e9\n[memory]',
            "cpu: clusters must hold all 2 cores, got 3",
        ),
        (
            "[memory]",
            '[[cpu.clusters]]\nname = "a core"\ncores = 2\nclock_hz = 1e9\nfp32 = -8\n[memory]',
            r"clusters\[0\]: fp32 must be positive",
        ),
        (
            "[memory]",
            '[accelerator]\nname = "a GPU"\ncompute_capability = "sm_87"\nsource = "x"\n[memory]',
            "compute_capability must look like \"8.7\", got 'sm_87'",
        ),
        (
            "[memory]",
            '[accelerator]\nname = "a GPU"\ndla_cores = -1\nsource = "x"\n[memory]',
            "dla_cores must not be negative",
        ),
        (
            "[memory]",
            '[accelerator]\nname = "a GPU"\nmultiprocessors = 0\nsource = "x"\n[memory]',
            "multiprocessors must be positive",
        ),
        ("[memory]", "[kernels]\nchannels = 8\n[memory]", r"target\.kernels: field 'head_dim' is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINE
    with pytest.raises(InputError, match=message) as caught:
        get_target(write(tmp_path, MINE.replace(old, new)))
    assert "my-board.toml" in str(caught.value)


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        get_target(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        get_target(tmp_path / "folder.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a TOML file"):
        get_target(tmp_path / "binary.toml")


# Two real machines, and two kinds of core in one chip.
INTEL = "model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 fma f16c avx512f avx512_vnni\n"
OLD_AMD = "model name\t: AMD EPYC 7571\nflags\t\t: fpu avx2 fma f16c\n"
PI_5 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimdhp asimddp\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
MIXED = "Features\t: fp asimd asimdhp asimddp i8mm\n\nFeatures\t: fp asimd asimdhp asimddp\n"


@pytest.mark.parametrize(
    ("text", "arch", "isa", "model", "int8_dot"),
    [
        (INTEL * 2, "x86_64", ("avx2", "fma", "f16c", "avx512", "avx512-vnni"), "Intel(R) Xeon(R)", True),
        (OLD_AMD, "x86_64", ("avx2", "fma", "f16c"), "AMD EPYC 7571", False),
        (PI_5, "aarch64", ("neon", "fp16", "dotprod"), "Raspberry Pi 5 Model B Rev 1.0", True),
        (MIXED, "aarch64", ("neon", "fp16", "dotprod"), "", True),
        ("", "arm64", (), "", False),
    ],
)
def test_features_are_those_that_every_core_has(
    text: str, arch: str, isa: tuple[str, ...], model: str, int8_dot: bool
) -> None:
    features = parse_cpuinfo(text, arch, cores=4)
    assert (features.isa, features.model, features.int8_dot) == (isa, model, int8_dot)


@pytest.mark.parametrize(
    ("name", "sums_in_32_bits"),
    [("x86-avx2", False), ("x86-avx512-vnni", True), ("raspberry-pi-4", False), ("raspberry-pi-5", True)],
)
def test_a_target_knows_whether_int8_has_its_own_instruction(name: str, sums_in_32_bits: bool) -> None:
    assert get_target(name).int8_dot is sums_in_32_bits


@pytest.mark.parametrize(
    ("machine", "text", "first", "warned"),
    [("x86_64", INTEL, "openvino", False), ("x86_64", OLD_AMD, "openvino", True), ("aarch64", PI_5, "litert", False)],
)
def test_this_machine_gets_the_engine_that_suits_its_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, text: str, first: str, warned: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    monkeypatch.setattr("edgeattn.targets.host.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    target = get_target("cpu")
    assert target.name == "cpu"
    assert target.backends[0] == first
    assert bool(target.notes) == warned


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_file_says_which_sizes_its_kernels_like(name: str) -> None:
    assert "[kernels]" in (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("machine", "text", "channels", "head_dim"),
    [("x86_64", INTEL, 16, 16), ("x86_64", OLD_AMD, 8, 8), ("aarch64", PI_5, 16, 8), ("riscv64", "", 16, 8)],
)
def test_this_machines_kernels_follow_from_its_vectors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, text: str, channels: int, head_dim: int
) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    monkeypatch.setattr("edgeattn.targets.host.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    kernels = host_target().kernels
    assert (kernels.channels, kernels.head_dim) == (channels, head_dim)


def test_a_head_dimension_that_no_kernel_fills_is_told_and_one_that_fits_is_not() -> None:
    jetson = get_target("jetson")
    assert head_dim_note(jetson, 64) == ""
    assert head_dim_note(jetson, 20).startswith("heads of 20 entries are no multiple of 8")
    assert head_dim_note(get_target("raspberry-pi-4"), 24) == ""
    assert head_dim_note(get_target("x86-avx512-vnni"), 24) != ""


def test_this_machines_rates_follow_from_its_clock_and_vectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        INTEL + "cpu MHz\t\t: 1999.5\n" + INTEL + "cpu MHz\t: 2000.000\n", encoding="utf-8"
    )
    monkeypatch.setattr("edgeattn.targets.host.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("edgeattn.targets.host.MAX_FREQUENCY", tmp_path / "none")
    monkeypatch.setattr("edgeattn.targets.host._usable_cores", lambda: 3)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    target = host_target()
    assert target.peaks is not None
    assert target.cpu.clock_hz == 2e9
    # AVX-512: two multiply-adds of 16 float32 a cycle; VNNI: of 64 int8.
    assert (target.peaks.fp32, target.peaks.fp16, target.peaks.int8) == (3 * 2e9 * 64, None, 3 * 2e9 * 256)
    assert target.cpu.rate("fp32", 1) == 2e9 * 64

    (tmp_path / "khz").write_text("3500000\n", encoding="ascii")
    monkeypatch.setattr("edgeattn.targets.host.MAX_FREQUENCY", tmp_path / "khz")
    assert host_target().cpu.clock_hz == 3.5e9


def test_a_machine_that_tells_no_clock_has_no_rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(INTEL + "cpu MHz\t: unknown\n", encoding="utf-8")
    monkeypatch.setattr("edgeattn.targets.host.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("edgeattn.targets.host.MAX_FREQUENCY", tmp_path / "none")
    target = host_target()
    assert (target.cpu.clock_hz, target.peaks, target.cpu.clusters) == (None, None, ())


def test_a_machine_without_cpuinfo_is_still_a_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgeattn.targets.host.CPUINFO", tmp_path / "none")
    assert host_target().isa == ()


def test_the_target_that_the_documentation_shows_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
    file = tmp_path / "my-board.toml"
    file.write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    target = get_target(str(file))
    assert (target.backends[0], target.default_deadline_ms, target.compute_capability) == ("litert", 40.0, "8.7")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("5.3", False), ("7.2", False), ("7.5", False), ("8.0", True), ("8.7", True), ("10.1", True), ("12", True)],
)
def test_gpus_have_kernels_for_2_4_since_ampere(capability: str, expected: bool) -> None:
    assert supports_2_4(capability) is expected
