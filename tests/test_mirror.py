"""tests/ mirrors the rooms: a module has a test of its name, or one of its room that imports it, or a line below."""

from __future__ import annotations

import ast
import functools
import os
from pathlib import Path

import pytest

from tests.wheels import ROOMS, ROOT

TESTS = ROOT / "tests"
FURTHER = {
    "cli/check": "cli/test_verdicts.py",
    "cli/common": "cli/test_options.py",
    "cli/convert": "cli/test_commands.py",
    "cli/demo": "cli/test_stream.py",
    "cli/loading": "cli/test_commands.py",
    "cli/models": "cli/test_commands.py",
    "cli/quantize": "cli/test_commands.py",
    "cli/selftest": "cli/test_commands.py",
    "cli/sensitivity_tables": "cli/test_inspect.py",
    "cli/tasks": "cli/test_run.py",
    "cli/train": "cli/test_commands.py",
    "converters/conversion": "pipeline/test_recipes.py",
    "converters/onnxruntime": "pipeline/test_several.py",
    "converters/passes/complex_reader": "converters/passes/test_real_pairs.py",
    "converters/passes/complex_rules": "converters/passes/test_real_pairs.py",
    "converters/passes/fourier_rules": "converters/passes/test_real_pairs.py",
    "converters/passes/onnx_graph": "converters/passes/test_onnx_passes.py",
    "converters/passes/short_time": "converters/passes/test_real_pairs.py",
    "distillation": "distillation/test_distillation.py",
    "evaluation/probing": "pipeline/test_adversarial.py",
    "graphs/files": "graphs/test_counting.py",
    "guards/children": "cli/test_ending.py",
    "jobs/answers": "pipeline/test_run.py",
    "jobs/evaluate": "targets/devices/test_check_there.py",
    "jobs/golden": "targets/devices/test_ssh.py",
    "jobs/measure": "profiling/test_worker.py",
    "jobs/remote": "targets/devices/test_archive.py",
    "jobs/transcript": "targets/devices/test_ssh.py",
    "model": "pipeline/test_convert.py",
    "models/streaming_conformer/accents": "models/test_voices.py",
    "pipeline/inspect": "cli/test_inspect.py",
    "pipeline/prune": "cli/test_prune.py",
    "pipeline/steps/early": "cli/test_early.py",
    "pipeline/steps/rows": "pipeline/test_convert.py",
    "pipeline/steps/sensitivity": "cli/test_inspect.py",
    "pipeline/steps/served": "pipeline/test_convert.py",
    "pruning/compare": "pruning/test_apply.py",
    "pruning/configs": "pruning/test_saved.py",
    "pruning/flow": "pruning/test_imported.py",
    "pruning/forms/heads": "pruning/forms/test_forms.py",
    "pruning/forms/neurons": "pruning/forms/test_forms.py",
    "pruning/moments": "pruning/forms/test_low_rank.py",
    "pruning/repetitions": "pruning/test_imported.py",
    "pruning/states": "pruning/test_apply.py",
    "pruning/writing_config": "pruning/test_saved.py",
    "quantize/onnx": "quantize/test_qdq.py",
    "quantize/quantization": "pipeline/test_recipes.py",
    "quantize/student": "quantize/test_recovery.py",
    "runtimes/faults": "runtimes/test_sessions.py",
    "runtimes/inputs": "runtimes/test_sessions.py",
    "runtimes/litert": "runtimes/test_sessions.py",
    "runtimes/onnxruntime": "runtimes/test_sessions.py",
    "runtimes/openvino": "runtimes/test_sessions.py",
    "runtimes/session": "runtimes/test_sessions.py",
    "runtimes/stream": "runtimes/test_streams.py",
    "sources/builtin": "sources/test_sources.py",
    "sources/data": "sources/test_sources.py",
    "sources/names": "cli/test_early.py",
    "sources/onnx/external": "sources/test_hostile_onnx.py",
    "sources/onnx/node_names": "sources/test_onnx_file.py",
    "sources/onnx/ops": "sources/onnx/test_importer.py",
    "sources/onnx/places": "sources/onnx/test_importer.py",
    "sources/onnx/stored": "sources/test_hostile_onnx.py",
    "sources/onnx/walk": "sources/test_hostile_onnx.py",
    "sources/outputs": "sources/test_sources.py",
    "sources/packed": "sources/test_forward.py",
    "sources/program": "sources/test_hostile_programs.py",
    "sources/single": "sources/test_forward.py",
    "sources/tflite/arithmetic": "sources/tflite/test_translate.py",
    "sources/tflite/images": "sources/tflite/test_translate.py",
    "sources/tflite/shaping": "sources/tflite/test_translate.py",
    "sources/usercode": "sources/test_sources.py",
    "targets/devices/runner": "targets/devices/test_ssh.py",
    "targets/loader": "targets/test_targets.py",
    "targets/target": "targets/test_targets.py",
    "tasks/boxes": "tasks/test_detection.py",
    "tasks/classification": "tasks/test_text_classification.py",
    "tasks/image_inputs": "tasks/test_image_classification.py",
    "tasks/labels": "tasks/test_text_classification.py",
    "tasks/pipeline": "pipeline/test_run.py",
    "tasks/texts": "tasks/test_text_classification.py",
    "traces": "cli/test_traces.py",
}
"""Module, or folder of modules, that no test of its room imports -> the test that goes through it."""


def modules() -> list[str]:
    """Every module with code of its own as ``room/name``; a package's ``__init__`` is tested with what it shows."""
    found = []
    for top in ("edgeattn", *ROOMS):
        for folder, _, names in os.walk(ROOT / top):  # does not follow the links
            for name in names:
                if name.endswith(".py") and name not in ("__init__.py", "__main__.py"):
                    path = (Path(folder) / name).relative_to(ROOT).with_suffix("")
                    found.append((path.relative_to(top) if top == "edgeattn" else path).as_posix())
    return sorted(found)


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """Test file -> every dotted name below edgeattn that it imports."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[path.relative_to(TESTS).as_posix()] = frozenset(names)
    return found


def own_tests(module: str) -> list[str]:
    """Tests of its name, or of a folder that holds it, in their places; and tests of its room that import it."""
    parts = module.split("/")
    places = {("/".join(parts[:depth]), name) for depth in range(len(parts)) for name in parts[depth:]}
    named = [f"{folder}/test_{name}.py".removeprefix("/") for folder, name in sorted(places)]
    dotted, room = f"edgeattn.{module.replace('/', '.')}", parts[:-1][:1]
    importing = [path for path, used in imports().items() if dotted in used and path.split("/")[:-1][:1] == room]
    return [path for path in named if path in imports()] + importing


def line_of(module: str) -> str | None:
    """The line of :data:`FURTHER` that speaks of it."""
    return next((line for line in FURTHER if module == line or module.startswith(f"{line}/")), None)


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_test(module: str) -> None:
    assert own_tests(module) or line_of(module), f"{module}: no test of its room imports it, none has its name"


@pytest.mark.parametrize(("line", "test"), FURTHER.items())
def test_what_stands_for_a_modules_own_test_exists_and_is_needed(line: str, test: str) -> None:
    assert test in imports()
    spoken_of = [module for module in modules() if line_of(module) == line]
    assert spoken_of, f"{line}: no such module"
    assert not all(own_tests(module) for module in spoken_of), f"{line}: it has a test of its own; drop this line"
