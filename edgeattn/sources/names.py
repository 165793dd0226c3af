"""What a model will be called, as far as its reference tells before anything of it is read."""

from __future__ import annotations

import ast
from pathlib import Path

from edgeattn.sources import builtin, code, exported, pruned
from edgeattn.sources.huggingface import directory as huggingface
from edgeattn.sources.onnx import file as onnx_file
from edgeattn.sources.tflite import file as tflite_file


def expected_name(reference: str) -> str | None:
    """The name of the model of a reference; None where only loading tells.

    >>> expected_name("speech/my_encoder.onnx"), expected_name("package.module:factory")
    ('my-encoder', None)
    """
    if builtin.owns(reference):
        return reference
    if code.is_python_file(reference):
        path, factory = code.split_reference(reference)
        return _called(Path(path).stem) if _makes_a_module(Path(path), factory) else None
    if code.is_module(reference) or pruned.owns(reference):
        return None
    if exported.owns(reference) or onnx_file.owns(reference) or tflite_file.owns(reference):
        return _called(Path(reference).stem)
    return _called(Path(reference).resolve().name) if huggingface.owns(reference) else None


def _called(stem: str) -> str:
    return stem.replace("_", "-")


def _makes_a_module(path: Path, factory: str) -> bool:
    """Whether a file defines its factory itself and no EdgeModel, which may be called anything."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # loading says what is wrong with it
        return False
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return factory in defined and "EdgeModel" not in names | attributes
