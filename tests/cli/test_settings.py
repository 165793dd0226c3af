"""edgeattn.toml: options that a project keeps, spelled as the flags are; flags win."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.conversions import Converted


@pytest.fixture
def toml(edgeattn: Command) -> Path:
    """The file in the directory that the commands run in."""
    return Path("edgeattn.toml")


def test_options_of_the_file_are_defaults(edgeattn: Command, kept: Converted, toml: Path) -> None:
    toml.write_text(
        f'[convert]\nmodel = "{kept.reference}"\ndata = "{kept.data}"\ntarget = ["jetson"]\nprecision = "fp16"\n'
        'paced-seconds = 0\nout = "made"\nzip = true\njson = true\nmax-size = "4MB"\ndeadline = "40ms"\n'
    )
    outcome = edgeattn("convert")
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["bundle"] == "made/small-attention.jetson-orin-nano.edge.zip"
    assert outcome.json["results"][0]["precision"]["asked"] == "fp16"


def test_flags_win(edgeattn: Command, kept: Converted, toml: Path) -> None:
    toml.write_text(
        f'[convert]\nmodel = "{kept.reference}"\nprecision = "no such"\npaced-seconds = 0\ntarget = "no such"\n'
    )
    outcome = edgeattn("convert", "--precision", "fp32", "--target", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["results"][0]["precision"]["asked"] == "fp32"


def test_one_value_stands_for_a_list_of_one(edgeattn: Command, toml: Path) -> None:
    toml.write_text('[convert]\ntarget = "jetsno"\n')
    assert "unknown target 'jetsno', did you mean 'jetson'?" in edgeattn("convert").error


def test_names_may_be_written_with_underscores(edgeattn: Command, toml: Path, small_bundle: Path) -> None:
    toml.write_text("[profile]\npaced_seconds = 0\nruns = 3\njson = true\n")
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
