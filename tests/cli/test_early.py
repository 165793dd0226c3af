"""What the command line alone tells to be wrong is refused before the model's file is run and the pipeline imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeattn.models import DEFAULT
from edgeattn.sources.names import expected_name
from tests.cli.conftest import Command

LOUD = """\
from pathlib import Path

Path("was-run").touch()


def model():
    raise AssertionError("called")


def build():
    from edgeattn.model import EdgeModel

    raise AssertionError("called")
"""


@pytest.fixture
def loud(edgeattn: Command) -> Path:
    """A file in the directory of the commands that leaves a mark when it is run."""
    path = Path("my_model.py")
    path.write_text(LOUD.partition("def build")[0])
    return path


def there(name: str) -> None:
    Path("out", name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("convert", "my_model.py"), 2, "out/my-model.cpu.edge exists; remove it, choose another --out, or pass"),
        (("convert", "my_model.py", "--zip"), 2, "out/my-model.cpu.edge.zip exists"),
        (("quantize", "my_model.py"), 2, "out/my-model.cpu.quantized exists"),
        (("prune", "my_model.py", "--heads", "0.5"), 2, "out/my-model.cpu.pruned exists"),
        (("convert", "my_model.py", "--precision", "int88", "-o", "new"), 2, "unknown precision 'int88', did you mean"),
        (("quantize", "my_model.py", "--precision", "int88", "-o", "new"), 2, "unknown precision 'int88'"),
        (("convert", "my_model.py", "-t", "jetsno"), 2, "unknown target 'jetsno', did you mean 'jetson'?"),
        (("prune", "my_model.py", "--heads", "0.5", "-t", "jetsno"), 2, "unknown target 'jetsno'"),
        (("convert", "my_model.py", "--backend", "tensorrt", "-o", "new"), 4, "unknown engine 'tensorrt'"),
        (("convert", "my_model.py", "-t", "mobile", "--precision", "int8-nncf"), 4, "litert on android-arm64 has no"),
        (("convert", "my_model.py", "--dla", "-o", "new"), 4, "has no DLA"),
    ],
)
def test_it_is_refused_before_the_file_is_run(
    edgeattn: Command, loud: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    for suffix in ("edge", "edge.zip", "quantized", "pruned"):
        there(f"my-model.cpu.{suffix}")
    outcome = edgeattn(*words)
    assert outcome.code == code
    assert message in outcome.error
    assert not Path("was-run").exists()
    assert "loading" not in outcome.err


def test_what_is_right_is_run(edgeattn: Command, loud: Path) -> None:
    there("my-model.cpu.edge")
    assert "called" in edgeattn("convert", loud, "--force").err
    assert Path("was-run").exists()


def test_of_several_targets_a_precision_that_one_lacks_stops_none(edgeattn: Command, loud: Path) -> None:
    assert "called" in edgeattn("convert", loud, "-t", "cpu", "-t", "mobile", "--precision", "int8-nncf").err


def test_nothing_of_the_pipeline_is_imported(tmp_path: Path) -> None:
    (tmp_path / f"out/{DEFAULT}.cpu.edge").mkdir(parents=True)
    program = (
        "import sys; sys.argv = ['edgeattn', 'convert']\n"
        "from edgeattn.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = ('torch', 'onnx', 'openvino', 'edgeattn.pipeline.convert')\n"
        "print(code, [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert "exists; remove it" in done.stderr


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("streaming-conformer", "streaming-conformer"),
        ("a/my_model.pt2", "my-model"),
        ("a/my_model.onnx", "my-model"),
        ("my_model.py", "my-model"),
        ("my_model.py:model", "my-model"),
        ("my_model.py:other", None),  # not defined there
        ("made.py", None),  # makes an EdgeModel, which is called as it likes
        ("imported.py", None),
        ("broken.py", None),
        ("missing.py", None),
        ("package.module:factory", None),
        ("some_directory", "some-directory"),
        ("nothing-there", None),
    ],
)
def test_a_name_is_told_where_the_reference_tells_it(loud: Path, reference: str, name: str | None) -> None:
    Path("made.py").write_text(LOUD)
    Path("imported.py").write_text("from elsewhere import model\n")
    Path("broken.py").write_text("def model(:\n")
    Path("some_directory").mkdir()
    assert expected_name(reference) == name
    assert not Path("was-run").exists()
