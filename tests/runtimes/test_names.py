"""Names inside of a model's file that are no text, or that a terminal would obey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import BundleError
from edgeattn.runtimes.engines import open_session
from tests.runtimes.tiny import tiny_spec

OPS = ("MatMul", "Softmax")


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file with another name of the same length, so that every length in it stays."""
    assert len(old) == len(new)
    assert data.count(old) >= 1
    return data.replace(old, new)


def test_a_node_whose_name_is_no_text_is_counted(tiny_file: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "main.onnx"
    path.write_bytes(renamed(tiny_file("onnxruntime").read_bytes(), b"shares", b"\xffhares"))
    with open_session("onnxruntime", {"main": path}, tiny_spec()) as session:
        assert set(OPS) <= set(session.executed())


@pytest.mark.parametrize("name", [b"shares", b"logits"])
def test_an_engine_repeats_no_name_to_the_terminal(
    tiny_file: Callable[[str], Path], tmp_path: Path, name: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "main.onnx"
    data = renamed(tiny_file("onnxruntime").read_bytes(), name, b"\x1b[2J\x1b[")
    path.write_bytes(renamed(data, b"LogSoftmax", b"\x1b]0;title\x07"))
    with pytest.raises(BundleError) as caught, open_session("onnxruntime", {"main": path}, tiny_spec()):
        pass
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    assert str(caught.value).isprintable()


def test_a_custom_operation_whose_name_is_no_text_is_refused(
    tiny_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def undecodable(_: Any) -> Any:
        return b"\xff".decode()  # as the interpreter does with the name in the file

    with open_session("litert", {"main": tiny_file("litert")}, tiny_spec()) as session:
        from ai_edge_litert.interpreter import Interpreter

        monkeypatch.setattr(Interpreter, "_get_ops_details", undecodable)
        with pytest.raises(BundleError, match="LiteRT cannot load it, it is damaged"):
            session.executed()
