"""MODEL as a directory of a pruned model, as :mod:`edgeattn.pruning.saved` writes it.

That of a Hugging Face source is a Hugging Face directory again, read as one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeattn.errors import ModelError
from edgeattn.guards.confined import confined_file
from edgeattn.model import EdgeModel
from edgeattn.sources import builtin
from edgeattn.sources.huggingface.checkpoint import CONFIG
from edgeattn.sources.onnx import file as onnx_file

PRUNING = "pruning.json"  # known without torch


def owns(reference: str) -> bool:
    """Whether a reference is a directory of a pruned model that is no Hugging Face one."""
    directory = Path(reference)
    return (directory / PRUNING).is_file() and not (directory / CONFIG).is_file()


def source_of(reference: str) -> str:
    """The MODEL that a directory of a pruned built-in model was made of; any other reference itself."""
    if not owns(reference):
        return reference
    from edgeattn.pruning import read_saved

    source = read_saved(Path(reference)).source
    return source if builtin.owns(source) else reference


def load(reference: str) -> EdgeModel:
    """A pruned built-in model, or the ONNX file that a pruned ONNX file is.

    What code of the user's made has to be named by the user: data never names code to run.

    Raises:
        ModelError: if it is damaged, or its source is another one.
    """
    from edgeattn.pruning import EXAMPLE, GRAPH, PROGRAM, apply_saved, read_saved

    directory = Path(reference)
    saved = read_saved(directory)
    if (directory / GRAPH).is_file():
        for name in (GRAPH, EXAMPLE):
            confined_file(directory / name, directory, ModelError)
        model = onnx_file.load(str(directory / GRAPH))
        return replace(model, spec=replace(model.spec, name=onnx_file.model_name(Path(saved.source))))
    if not builtin.owns(saved.source):
        program = directory / PROGRAM
        other = f"; or take {program}, which needs no code" if program.is_file() else ""
        raise ModelError(
            f"{directory}: the weights of a pruned {saved.source!r:.200}, whose code is not run because data names it; "
            f"name it yourself: edgeattn convert {saved.source:.200} --prune {directory}{other}"
        )
    return apply_saved(builtin.load(saved.source), directory)
