"""Imports onnx's own backend tests, and writes the table of operators of docs/onnx.md.

    python -m tests.sources.onnx.backend

A case is a model, inputs and outputs, with a tolerance. It is read as a file is, with float16 and bfloat16 widened,
made static, imported into torch and run on its inputs. Cases of an opset that is newer than those that are read are
read as of the newest. Where the import asks for a constant, inputs are bound as ``--set`` does and as exporters write
them: first integers and booleans (axes, shapes), then all but the first (weights), then all. One of:

- right: every output has the shape, the type and the values of the case, to its tolerance;
- refused: one sentence says why;
- runtime: other values than those of the case, and ONNX Runtime's, which files are compared with;
- wrong, crash: none of these; tests/sources/onnx/test_backend_cases.py holds that there is none.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parents[3] / "docs" / "onnx.md"
MARK = "## Operators\n"
SEVERAL = "several"  # operators in one case: bodies of functions, models
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
RUNTIME = 1e-5  # of the largest value
FLOAT32 = 1e-6  # of doubles, which are read as float32
BFLOAT16 = 2**-6  # two of its steps, as onnx's own runner allows
REASON = 90  # characters of a reason in the table
HEAD = """\
## Operators

onnx's own backend tests (onnx {version}: {kinds})
by the importer, a row per operator; cases with several operators are the last row. {right} of {all} are right to their
tolerance, the others are refused by name{but}. Cases of opsets beyond {newest} are read as of {newest}.
`python -m tests.sources.onnx.backend` writes this table.

| operator | right | refused | most often because |
|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case: ``right``, ``refused``, ``runtime``, ``wrong`` or ``crash``, and why."""

    name: str
    operator: str
    kind: str
    reason: str = ""


@functools.cache
def cases() -> Mapping[str, Sequence[Any]]:
    """Operator -> its cases, as onnx makes them."""
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, list[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of the inputs that onnx makes
        made = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    for case in made:
        found.setdefault(operator_of(case), []).append(case)
    return found


def operator_of(case: Any) -> str:
    """The one operator of a case, with its domain where that is not the standard's."""
    names = {f"{node.domain}.{node.op_type}".removeprefix("ai.onnx.").lstrip(".") for node in model_of(case).graph.node}
    return names.pop() if len(names) == 1 and case.kind == "node" else SEVERAL


def model_of(case: Any) -> Any:
    """The model of a case, read where it is a file."""
    import onnx

    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def data_of(case: Any) -> list[tuple[list[Any], list[Any]]]:
    """Inputs and outputs of a case."""
    import onnx

    def array(value: Any) -> Any:  # types that numpy has not are stored as ONNX does
        return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value

    if case.data_sets is not None:
        return [([array(v) for v in given], [array(v) for v in wanted]) for given, wanted in case.data_sets]

    def read(folder: Path, kind: str) -> list[np.ndarray]:
        files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
        return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]

    folders = sorted(Path(case.model_dir).glob("test_data_set_*"))
    return [(read(folder, "input"), read(folder, "output")) for folder in folders]


def outcome(case: Any, operator: str) -> Outcome:
    """What comes of a case."""
    from edgeattn.errors import EdgeattnError

    try:
        for given, wanted in data_of(case):
            kind, reason = _imported(case, given, wanted)
            if kind != "right":
                return Outcome(name=case.name, operator=operator, kind=kind, reason=reason)
    except EdgeattnError as error:
        return Outcome(name=case.name, operator=operator, kind="refused", reason=_short(error))
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        return Outcome(name=case.name, operator=operator, kind="crash", reason=f"{type(error).__name__}: {error}")
    return Outcome(name=case.name, operator=operator, kind="right")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).partition("case.onnx: ")[2] or " ".join(str(error).split())
    for cut in ("cannot be expressed in torch: ", "): ", ") is ", ") does "):
        text = text.partition(cut)[2] or text
    return text


def _imported(case: Any, given: Sequence[Any], wanted: Sequence[Any]) -> tuple[str, str]:
    import onnx

    from edgeattn.errors import EdgeattnError
    from edgeattn.sources.onnx.example import declared_inputs
    from edgeattn.sources.onnx.read import MAX_OPSET, checked
    from edgeattn.sources.onnx.upgrade import in_float32
    from edgeattn.sources.onnx.values import STANDARD

    model = onnx.ModelProto()
    model.CopyFrom(model_of(case))
    for entry in model.opset_import:
        if entry.domain in STANDARD:
            entry.version = min(entry.version, MAX_OPSET)
    model = checked(model, Path("case.onnx"))
    declared_inputs(model.graph)
    in_float32(model, "FLOAT16", "BFLOAT16", "DOUBLE")
    stored = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in stored]
    inputs = {name: _as_float32(np.asarray(array)) for name, array in zip(names, given, strict=False)}
    ways = [{}, {n: a for n, a in inputs.items() if a.dtype.kind in "iub"}, dict(list(inputs.items())[1:]), inputs]
    error: EdgeattnError | None = None
    for bound in (way for i, way in enumerate(ways) if not i or way.keys() not in [w.keys() for w in ways[:i]]):
        free = {name: array for name, array in inputs.items() if name not in bound}
        try:
            return _run(_bound(model, bound), free, wanted, case)
        except EdgeattnError as new:
            error = error or new
    assert error is not None
    raise error


def _bound(model: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The model with inputs as initializers."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    left = [value for value in made.graph.input if value.name not in arrays]
    del made.graph.input[:]
    made.graph.input.extend(left)
    return made


def _as_float32(array: np.ndarray) -> np.ndarray:
    from edgeattn.errors import UnsupportedError

    if array.dtype == np.float64 and np.abs(array[np.isfinite(array)]).max(initial=0.0) > np.finfo(np.float32).max:
        raise UnsupportedError("its float64 numbers are beyond float32")
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16", "float64") else array


def _run(model: Any, inputs: Mapping[str, np.ndarray], wanted: Sequence[Any], case: Any) -> tuple[str, str]:
    import torch

    from edgeattn.errors import UnsupportedError
    from edgeattn.guards.silence import silenced
    from edgeattn.sources.onnx.imported import ImportedModel
    from edgeattn.sources.onnx.importer import import_onnx
    from edgeattn.sources.onnx.static import make_static
    from edgeattn.sources.onnx.values import constant_value, without_constant

    shapes = {name: without_constant(constant_value(array)) for name, array in inputs.items()}
    with silenced(), torch.inference_mode():
        module = import_onnx(make_static(model, shapes))
        if not isinstance(module, ImportedModel):
            raise UnsupportedError(str(module.unsupported))
        got = module(**{name: torch.from_numpy(array.copy()) for name, array in inputs.items()})
    for value, array in zip(model.graph.output, wanted, strict=False):
        if value.name not in got:
            continue  # empty, and left out
        why = _difference(got[value.name].numpy(), np.asarray(array), case)
        if why:
            return ("runtime" if _is_of_runtime(model, inputs, got) else "wrong"), why
    return "right", ""


def _is_of_runtime(model: Any, inputs: Mapping[str, np.ndarray], got: Mapping[str, Any]) -> bool:
    """Whether ONNX Runtime, which a file is compared with, gives the importer's values and not the case's."""
    from edgeattn.sources.onnx.reference import difference, runtime_session

    theirs = runtime_session(model).run(list(got), dict(inputs))
    return all(difference(a, b.numpy()) <= RUNTIME for a, b in zip(theirs, got.values(), strict=True))


def _difference(ours: np.ndarray, theirs: np.ndarray, case: Any) -> str:
    narrow = theirs.dtype.name in ("float16", "bfloat16")
    double = theirs.dtype == np.float64 and ours.dtype == np.float32
    ours = ours.astype(np.float64) if double else ours
    rtol = max(case.rtol, BFLOAT16) if theirs.dtype.name == "bfloat16" else case.rtol
    if narrow:  # both as the narrow type holds them
        ours, theirs = ours.astype(theirs.dtype).astype(np.float64), theirs.astype(np.float64)
    if ours.shape != theirs.shape or (not narrow and ours.dtype != theirs.dtype):
        return f"{ours.dtype}{list(ours.shape)}, wanted {theirs.dtype}{list(theirs.shape)}"
    if theirs.dtype.kind != "f":
        return "" if np.array_equal(ours, theirs) else "other values"
    same = np.isclose(ours, theirs, rtol=rtol, atol=max(case.atol, FLOAT32) if double else case.atol, equal_nan=True)
    return "" if bool(same.all()) else f"{int((~same).sum())} of {same.size} values beyond the tolerance"


def rows(found: Sequence[Outcome]) -> dict[str, str]:
    """Operator -> its row of the table."""
    table = {}
    for operator in sorted({one.operator for one in found}, key=lambda name: (name == SEVERAL, name)):
        own = [one for one in found if one.operator == operator]
        reasons = Counter(one.reason[:REASON].replace("|", "/") for one in own if one.kind == "refused")
        why = min(reasons, key=lambda text: (-reasons[text], text)) if reasons else ""
        right = sum(one.kind == "right" for one in own)
        refused = sum(one.kind == "refused" for one in own)
        table[operator] = f"| {operator} | {right} | {refused} | {why} |"
    return table


def main() -> None:
    """Write the table."""
    import onnx

    from edgeattn.sources.onnx.read import MAX_OPSET

    found = [outcome(case, operator) for operator, own in cases().items() for case in own]
    for one in found:
        if one.kind in ("wrong", "crash"):
            print(one)
    right = sum(one.kind == "right" for one in found)
    told = {"newest": MAX_OPSET, "version": onnx.__version__, "kinds": ", ".join(KINDS)}
    runtime = sum(one.kind == "runtime" for one in found)
    but = f"; {runtime} have ONNX Runtime's values, which are not the standard's" if runtime else ""
    counts = {"right": f"{right:,}", "all": f"{len(found):,}", "but": but}
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0].rstrip() + "\n\n"
    PAGE.write_text(text + HEAD.format(**told, **counts) + "\n".join(rows(found).values()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
