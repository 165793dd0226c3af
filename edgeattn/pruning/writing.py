"""Pruned models written: a directory with pruning.json and weights, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from edgeattn.errors import EdgeattnError, UnsupportedError
from edgeattn.guards.outputs import refuse_existing, whole_directory, write_atomically
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.saved import (
    CONFIG,
    EXAMPLE,
    GRAPH,
    HF_WEIGHTS,
    PROGRAM,
    PRUNING,
    WEIGHTS,
    PruningRecord,
    is_saved,
    read_saved,
)
from edgeattn.pruning.weights import file_sha256, write_weights
from edgeattn.pruning.writing_config import write_hugging_face

SOURCE_KEYS = ("stack_trace", "source_fn_stack", "torch_fn", "from_node", "custom")  # of a node's metadata
MODULE = "torch.nn.modules.module.Module"  # what every class is called in a program that is written
FOLDERS = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/(?:[^/\s'\",;:()<>]+/)+(?=[^/\s])|(?<![\w.:/])~/(?=[^/\s])")

Export = Callable[[EdgeModel, Path], Mapping[str, Path]]


def write_pruned(
    directory: Path,
    pruned: EdgeModel,
    source: EdgeModel,
    cut: Cut,
    reference: str,
    facts: Mapping[str, Any],
    force: bool = False,
    export: Export | None = None,
) -> Path:
    """Write a pruned model; the directory appears whole or not at all.

    Args:
        pruned: what :func:`edgeattn.pruning.apply.prune` made, recovered or not.
        source: what ``cut`` was applied to, as it was loaded.
        reference: MODEL that ``source`` was loaded from. Of a pruned directory its cuts come first.
        facts: what was measured, JSON; what the written form is able to do is added: "loads", and "program".
        force: replace a directory that holds a pruned model.
        export: writes ONNX into a directory and gives the file of each graph; used for an ONNX source.

    Raises:
        OutputError: if the directory exists, or cannot be written.
        UnsupportedError: if the pruned model has no network of its own.
    """
    if pruned.network is None or pruned.rebuild is None:
        raise UnsupportedError(f"{pruned.spec.name}: a graph has no weights by name to write; convert it instead")
    # A directory with an ONNX file is read from that file: its layers have the names that the file gives them.
    again = is_saved(Path(reference)) and not (Path(reference) / GRAPH).is_file()
    before = read_saved(Path(reference)) if again else None
    given = (shown_reference(reference), source.source_sha256, ())
    first = (before.source, before.source_sha256, before.cuts) if before else given
    refuse_existing(directory, force, "a pruned model", is_saved(directory))
    with whole_directory(directory, force) as draft:
        if (Path(reference) / CONFIG).is_file():
            said = write_hugging_face(draft, pruned, Path(reference), (*first[2], cut))
            weights, cuts, more = HF_WEIGHTS, *said
        else:
            weights, cuts = WEIGHTS, (*first[2], cut)
            write_weights(draft / WEIGHTS, pruned.network)
            if source.onnx and export is not None:
                more = _write_graph(draft, pruned, first[0], export)
            else:
                more = {"loads": f"into {first[0]}", **_write_program(draft, pruned)}
        sha256 = file_sha256(draft / weights)
        saved = PruningRecord(first[0], first[1], sha256, cuts, without_folders({**facts, **more}))
        text = json.dumps(saved.to_json(), indent=1, allow_nan=False)
        write_atomically(draft / PRUNING, text.encode() + b"\n")
    return directory


def shown_reference(reference: str) -> str:
    """A MODEL reference without the folders that it lies in: they are the user's own business."""
    return Path(reference).name or reference


def without_folders(value: Any) -> Any:
    """JSON whose texts name files without the folders that they lie in; what tools say is full of those."""
    if isinstance(value, str):
        return FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    return [without_folders(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write_program(draft: Path, pruned: EdgeModel) -> dict[str, str]:
    """The model as a program of torch.export, which loads without the code that made it, where it is one graph."""
    graphs = pruned.spec.graphs
    if len(graphs) != 1 or graphs[0].states:
        return {"program": f"no {PROGRAM}: a program is one graph without states"}
    name = graphs[0].name
    example = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in pruned.example[name].items()}
    path = draft / PROGRAM
    try:
        with silenced(), torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(pruned.modules[name], (), example)
            _forget_source(program)
            torch.export.save(program, path)
    except Exception as error:  # noqa: BLE001 - torch.export raises whatever a forward does that it cannot trace
        path.unlink(missing_ok=True)
        # Not its words: torch quotes lines of the user's source.
        return {"program": f"no {PROGRAM}: torch.export: {type(error).__name__}"}
    return {"program": PROGRAM}


def _forget_source(program: torch.export.ExportedProgram) -> None:
    """Take out of a program what it says of the code that made it: traces with paths and lines, names of classes.

    Where a module stands stays: readers come apart by it, and messages name it.
    """
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in SOURCE_KEYS:
                node.meta.pop(key, None)
            if "nn_module_stack" in node.meta:
                node.meta["nn_module_stack"] = {
                    key: (path, MODULE) for key, (path, _) in node.meta["nn_module_stack"].items()
                }


def _write_graph(draft: Path, pruned: EdgeModel, source: str, export: Export) -> dict[str, str]:
    """The model as an ONNX file and inputs for it, where it is one graph."""
    graphs = pruned.spec.graphs
    if len(graphs) != 1:
        return {"loads": f"into {source}", "program": f"no {GRAPH}: it would be one graph, and these are {len(graphs)}"}
    try:
        made = export(pruned, draft)[graphs[0].name]
    except EdgeattnError as error:
        return {"loads": f"into {source}", "program": f"no {GRAPH}: {' '.join(str(error).split())[:200]}"}
    made.rename(draft / GRAPH)
    with (draft / EXAMPLE).open("wb") as file:
        np.savez(file, **cast(Any, pruned.example[graphs[0].name]))
    return {"loads": "alone", "program": GRAPH}
