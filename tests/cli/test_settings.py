"""edgeattn.toml: options that a project keeps, spelled as the flags are; flags win."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.errors import UnsupportedError
from edgeattn.pipeline import convert as pipeline
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pruning import request_text
from edgeattn.targets import Target
from tests.cli.conftest import Command
from tests.conversions import Converted


@pytest.fixture
def toml(edgeattn: Command) -> Path:
    """The file in the directory that the commands run in."""
    return Path("edgeattn.toml")


def test_options_of_the_file_are_defaults(edgeattn: Command, kept: Converted, toml: Path) -> None:
    toml.write_text(
        f'[convert]\nmodel = "{kept.reference}"\ndata = "{kept.data}"\ntarget = ["jetson"]\nprecision = "fp16"\n'
        'duration = "0s"\nout = "made"\nzip = true\njson = true\nmax-size = "4MB"\ndeadline = "40ms"\n'
    )
    outcome = edgeattn("convert")
    assert outcome.code == 5, outcome.err  # a deadline was asked for, and no Jetson is here to keep it
    assert outcome.json["results"][0]["bundle"] == "made/small-attention.jetson-orin-nano.edge.zip"
    assert outcome.json["results"][0]["precision"]["asked"] == "fp16"


def test_flags_win(edgeattn: Command, kept: Converted, toml: Path) -> None:
    toml.write_text(
        f'[convert]\nmodel = "{kept.reference}"\nprecision = "no such"\nduration = "0s"\ntarget = "no such"\n'
    )
    outcome = edgeattn("convert", "--precision", "fp32", "--target", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["precision"]["asked"] == "fp32"


def test_one_value_stands_for_a_list_of_one(edgeattn: Command, toml: Path) -> None:
    toml.write_text('[convert]\ntarget = "jetsno"\n')
    assert "unknown target 'jetsno', did you mean 'jetson'?" in edgeattn("convert").error


def test_names_may_be_written_with_underscores(edgeattn: Command, toml: Path, small_bundle: Path) -> None:
    toml.write_text("[profile]\nlock_clocks = false\nduration = '0s'\nruns = 3\njson = true\n")
    outcome = edgeattn("profile", small_bundle)
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["latency"]["runs"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[convrt]\n", "edgeattn.toml: unknown table 'convrt', did you mean 'convert'? Valid: "),
        (
            "[convert]\nprecison = 'fp32'\n",
            "edgeattn.toml: [convert]: unknown option 'precison', did you mean 'precision'?",
        ),
        ("[convert]\nas-json = true\n", "unknown option 'as-json'"),
        ("convert = 3\n", "edgeattn.toml: [convert] must be a table of options"),
        ("[convert\n", "edgeattn.toml: not a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(edgeattn: Command, toml: Path, text: str, message: str) -> None:
    toml.write_text(text)
    outcome = edgeattn("models")
    assert outcome.code == 2
    assert message in outcome.error


def test_a_file_that_is_no_text_is_refused(edgeattn: Command, toml: Path) -> None:
    toml.write_bytes(b"\xff\xfe\x00")
    assert "not a TOML file" in edgeattn("models").error


def test_a_value_of_the_wrong_type_exits_2(edgeattn: Command, toml: Path) -> None:
    toml.write_text("[convert]\nsamples = 'many'\n")
    outcome = edgeattn("convert")
    assert outcome.code == 2
    assert "Invalid value for '--samples'" in outcome.err


def test_without_a_file_nothing_changes(edgeattn: Command) -> None:
    assert edgeattn("models").code == 0


def test_an_empty_list_of_targets_is_refused(edgeattn: Command, toml: Path) -> None:
    toml.write_text("[convert]\ntarget = []\n", encoding="utf-8")
    outcome = edgeattn("convert", "missing.onnx")
    assert outcome.code == 2
    assert "no target is named" in outcome.error


# --- what one target has for itself -----------------------------------------------------------------------------------

QUICK = ("--duration", "0s", "--json")


@pytest.mark.slow
def test_a_target_has_its_own_deadline_and_precision(edgeattn: Command, kept: Converted, toml: Path) -> None:
    toml.write_text(
        '[convert]\nprecision = "fp32"\ndeadline = "90s"\n'
        '[targets.mobile]\ndeadline = "100s"\nprecision = "fp16"\n'
        '[targets.pixel-8]\ndevice = "ssh://board"\n'
    )
    names = ("--target", "cpu", "--target", "android-arm64", "--target", "pixel-8")
    outcome = edgeattn("convert", kept.reference, *names, *QUICK)
    assert outcome.code == 5, outcome.err  # no phone is here
    results = outcome.json["results"]
    assert [row["precision"]["shipped"] for row in results] == ["fp32", "fp16", "fp32"]
    deadlines = [next(gate for gate in row["gates"] if gate["gate"] == "deadline") for row in results]
    assert [gate["verdict"] for gate in deadlines] == ["passed", "not measured", "not measured"]
    for gate, limit in zip(deadlines, (90_000, 100_000, 90_000), strict=True):
        assert f"within {limit} ms (asked for)" in gate["wanted"]


@pytest.mark.slow
def test_a_flag_wins_over_the_table_of_a_target(edgeattn: Command, kept: Converted, toml: Path) -> None:
    flags = ("--deadline", "100s", "--precision", "fp32")
    toml.write_text('[targets.cpu]\ndeadline = "0.001us"\nprecision = "fp16"\n')
    outcome = edgeattn("convert", kept.reference, *flags, *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["precision"]["asked"] == "fp32"
    assert edgeattn("convert", kept.reference, *QUICK, "--force").code == 1  # its own cannot be met


@pytest.mark.slow
def test_check_and_profile_hold_a_bundle_to_the_deadline_of_its_target(
    edgeattn: Command, small_bundle: Path, toml: Path
) -> None:
    toml.write_text('[check]\ndeadline = "100s"\n[targets.cpu]\ndeadline = "0.001us"\n')
    assert edgeattn("check", small_bundle, *QUICK).code == 1
    assert edgeattn("profile", small_bundle, "--runs", "5", *QUICK).code == 1
    assert edgeattn("check", small_bundle, "--deadline", "100s", *QUICK).code == 0


def test_each_target_is_pruned_as_it_says(
    edgeattn: Command, kept: Converted, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def look(_: object, target: Target, options: ConvertOptions, *__: object) -> None:
        asked[target.name] = None if options.prune is None else request_text(options.prune)
        raise UnsupportedError("seen")

    monkeypatch.setattr(pipeline, "convert_target", look)
    monkeypatch.setattr(pipeline, "pruned", lambda exports, options, *_: ((each, exports) for each in options.targets))
    toml.write_text('[targets.cpu]\nprune = "speedup=1.5"\n')
    edgeattn("convert", kept.reference, *QUICK)
    edgeattn("convert", kept.reference, "--target", "mobile", "--prune", "neurons=0.5", *QUICK)
    assert asked == {"cpu": "speedup=1.5", "android-arm64": "neurons=0.5"}
    edgeattn("convert", kept.reference, "--prune", "neurons=0.25", *QUICK)
    assert asked["cpu"] == "neurons=0.25"


@pytest.mark.slow
def test_each_target_has_its_own_sizes(edgeattn: Command, toml: Path) -> None:
    pytest.importorskip("onnxscript", reason="conversion needs edgeattn[convert]")
    Path("encoder.py").write_text("from tests.several import masked_encoder as model\n")
    toml.write_text('[convert]\nbucket = "seq=16"\n[targets.jetson]\nbucket = ["seq=4,8"]\n')
    common = ("--precision", "fp32", "--backend", "onnxruntime", *QUICK)
    outcome = edgeattn("convert", "encoder.py", "--target", "jetson", "--target", "cpu", *common)
    assert outcome.code == 0, outcome.err
    jetson, cpu = outcome.json["results"]
    assert (jetson["target"], cpu["target"]) == ("jetson-orin-nano", "cpu")
    assert [row["sizes"] for row in jetson["buckets"]] == [{"seq": 4}, {"seq": 8}]
    assert [row["sizes"] for row in cpu["buckets"]] == [{"seq": 16}]
    assert outcome.json["model"]["buckets"] == {"main": ["main_4", "main_8", "main_16"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('deadlin = "4ms"', "unknown option 'deadlin', did you mean 'deadline'? Valid: bucket, deadline, device"),
        ('deadline = "soon"', "deadline: expected a time such as 40ms or 0.3s, got 'soon'"),
        ("deadline = true", "deadline: expected a time such as 40ms or 0.3s"),
        ("deadline = 0", "deadline: expected a time such as 40ms or 0.3s, got 0"),
        ('deadline = ["4ms"]', "deadline: expected a time"),
        ("precision = 16", 'precision must be a text as for --precision, such as "fp16"'),
        ('prune = ""', 'prune must be a text as for --prune, such as "speedup=1.5"'),
        ("bucket = 16", 'bucket must be as for --bucket, such as "seq=64,128", or a list of such texts'),
        ('bucket = ["seq=4", 5]', "bucket must be as for --bucket"),
    ],
)
def test_a_wrong_table_of_a_target_is_refused_by_every_command(
    edgeattn: Command, toml: Path, line: str, message: str
) -> None:
    toml.write_text(f"[targets.mobile]\n{line}\n")
    outcome = edgeattn("models")
    assert outcome.code == 2
    assert f"edgeattn.toml: [targets.mobile]: {message}" in outcome.error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('precision = "int88"', "[targets.cpu]: unknown precision 'int88', did you mean 'int8'?"),
        ('prune = "speed=2"', "[targets.cpu]: --prune speed=2: unknown option 'speed'"),
        ('bucket = "seq"', "--bucket seq: expected NAME=SIZE,SIZE"),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_any_waiting(
    edgeattn: Command, kept: Converted, toml: Path, line: str, message: str
) -> None:
    toml.write_text(f"[targets.cpu]\n{line}\n")
    outcome = edgeattn("convert", kept.reference, *QUICK)
    assert outcome.code == 2
    assert message in outcome.error
    assert "loading" not in outcome.err
