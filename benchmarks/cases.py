"""Converts attention modules as people write them, and compares each bundle with torch on inputs that it has not seen.

    python -m benchmarks.cases REFERENCE ... [--target cpu ...] [--out cases.jsonl] [--resume] [--jobs 1]

A REFERENCE is a folder of .py and .onnx files, a file, or ``file.py:factory``. Every function of a .py file without
arguments is a factory, but for ``more`` and names that begin with ``_`` or ``samples_``. ``samples_FACTORY(n, seed)``
of the file gives the inputs to compare on (dicts of arrays by name), else ``more()`` where names and shapes fit;
without them other numbers of the example's size are drawn. The oracle is the module that the factory returns, called
directly, or ONNX Runtime on the file itself. Bundles for a Jetson are replayed with ONNX Runtime: no engine of TensorRT
is run.

One line per case and target: ``right`` (at most 1e-4 of the largest value off, infinities and NaN in the same places;
more where the source itself computes in half precision), ``refused`` (exit code 4, with the reason), ``wrong`` (it
shipped, and is further off) or ``failed`` (any other end).
Each case runs in a process of its own. Exit code 1 if one is wrong or failed.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ("cpu", "android-arm64", "jetson-orin-nano")
REPLAY = {"jetson-orin-nano": "onnxruntime"}
BOUND = 1e-4
OWN = {"bfloat16": 5e-2, "float16": 5e-3}  # bounds where the source computes in it, with 8 and 11 bits
CALLS = 5
SECONDS = 600.0


def references(given: Iterable[str]) -> list[str]:
    """The cases of folders, files and references, in order."""
    found = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            found += references(str(p) for p in sorted((*path.glob("*.py"), *path.glob("*.onnx"))))
        elif path.suffix == ".py":
            found += [f"{path}:{factory}" for factory in factories(path)]
        else:
            found.append(name)
    return found


def factories(path: Path) -> list[str]:
    """Functions of a file that take no arguments, without running it."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [
        node.name
        for node in functions
        if not ast.unparse(node.args) and node.name != "more" and not node.name.startswith(("_", "samples_"))
    ]


# --- one case, in a process of its own --------------------------------------------------------------------------------


def measure(reference: str, target: str) -> dict[str, Any]:
    """Convert a case for a target and compare; what came of it."""
    from edgeattn.errors import EdgeattnError

    with tempfile.TemporaryDirectory() as directory:
        try:
            calls = list(compared(reference, target, Path(directory)))
        except EdgeattnError as error:
            outcome = "refused" if error.exit_code == 4 else "failed"
            return {"outcome": outcome, "code": error.exit_code, "reason": " ".join(str(error).split())[:1500]}
        except Exception as error:  # noqa: BLE001  # what the command line would tell as exit code 70
            return {"outcome": "failed", "code": 70, "reason": f"{type(error).__name__}: {error}"[:1500]}
    worst, bound = max(share for share, _ in calls), min(bound for _, bound in calls)
    return {"outcome": "right" if worst <= bound else "wrong", "share": float(f"{worst:.1e}"), "calls": len(calls)}


def compared(reference: str, target: str, directory: Path) -> Iterator[tuple[float, float]]:
    """How far each output of each call is from the oracle's, as a share of its largest value where that is above 1.

    With each the bound that the oracle's own precision allows.
    """
    from edgeattn.pipeline import convert
    from edgeattn.pipeline.steps.options import ConvertOptions
    from edgeattn.profiling.contract import MeasureOptions
    from edgeattn.progress import Quiet
    from edgeattn.runtimes import load
    from edgeattn.sources import load_model
    from edgeattn.targets import get_target

    model = load_model(reference)
    measure = MeasureOptions(runs=3, paced_seconds=0, spread_seconds=0)
    options = ConvertOptions(targets=(get_target(target),), precision="fp32", out=directory, measure=measure)
    result = convert.convert(model, None, options, Quiet()).results[0]
    if result.bundle is None:
        failed = [str(gate) for gate in result.gates if gate.verdict == "failed"]
        raise RuntimeError(f"nothing was published: {'; '.join(failed)}")
    run = oracle(reference, model)
    bound = max((own for kind, own in OWN.items() if any(kind in note for note in model.notes)), default=BOUND)
    with load(result.bundle, backend=REPLAY.get(target)) as session:
        for graph, example in model.example.items():
            spec = model.spec.graph(graph)
            for inputs in (example, *fresh(reference, example)):
                expected, got = run(inputs, graph), session.run(inputs, graph)
                for name, value in zip(spec.output_names, expected, strict=True):
                    yield share(value, got[name]), bound


def fresh(reference: str, example: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Inputs that the model has not seen: the file's own, or others like the example's."""
    from tests.acceptance.cells import like

    file, _, factory = reference.rpartition(":")
    if file:
        module = sys.modules[f"_edgeattn_source_{Path(file).stem}"]
        if own := getattr(module, f"samples_{factory}", None):
            return list(own(CALLS, 1))
        given = [_arrays(one, example) for one in getattr(module, "more", list)()]
        fitting = [
            one for one in given if {n: a.shape for n, a in one.items()} == {n: a.shape for n, a in example.items()}
        ]
        if fitting:
            return fitting
    return [dict(one) for one in like(dict(example), CALLS - 1, seed=1)]


def _arrays(given: Any, example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = given.items() if isinstance(given, Mapping) else zip(example, given, strict=False)
    return {name: np.asarray(value, example[name].dtype if name in example else None) for name, value in named}


def oracle(reference: str, model: Any) -> Any:
    """What the source itself gives, as a list in the order of its outputs: (inputs by name, graph) -> arrays.

    Where torch's kernels for inference give NaN (rows of nn.MultiheadAttention that see nothing) it is what the modules
    give without them, as docs/passes.md says.
    """
    import torch
    from torch.utils import _pytree as pytree

    from edgeattn.model import attention_fast_path

    file, _, factory = reference.rpartition(":")
    if not file:
        import onnxruntime

        session = onnxruntime.InferenceSession(reference)
        return lambda inputs, graph: session.run(list(model.spec.graph(graph).output_names), dict(inputs))
    made = getattr(sys.modules[f"_edgeattn_source_{Path(file).stem}"], factory)()
    if isinstance(made, tuple) and isinstance(made[0], torch.nn.Module):
        made[0].eval()
    stateless = len(model.spec.graphs) == 1 and not model.spec.graphs[0].states
    if not (isinstance(made, tuple) and isinstance(made[0], torch.nn.Module) and stateless):
        return lambda inputs, graph: list(model.run(inputs, graph).values())  # several graphs, states

    def run(inputs: Mapping[str, np.ndarray], _: str) -> list[np.ndarray]:
        module, given = made[0], made[1]
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}

        def answered() -> list[np.ndarray]:
            filled = _like(dict(given) if isinstance(given, Mapping) else given, list(tensors.values()))
            outputs = module(**filled) if isinstance(given, Mapping) else module(*filled)
            leaves = pytree.tree_leaves(outputs if not hasattr(outputs, "__dataclass_fields__") else vars(outputs))
            return [
                leaf.detach().float().numpy() if leaf.is_floating_point() else leaf.numpy()
                for leaf in leaves
                if isinstance(leaf, torch.Tensor)
            ]

        with torch.no_grad():
            answers = answered()
            if not any(np.isnan(value).any() for value in answers):
                return answers
            with attention_fast_path(False):
                own = answered()
        return [np.where(np.isnan(value), other, value) for value, other in zip(answers, own, strict=True)]

    return run


def _like(given: Any, tensors: Sequence[Any]) -> Any:
    """The tensors in the structure and the dtypes of the example's."""
    import torch
    from torch.utils import _pytree as pytree

    leaves, tree = pytree.tree_flatten(given)
    fed = iter(tensors)
    return pytree.tree_unflatten(
        [next(fed).to(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], tree
    )


def share(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference, relative to the largest finite value where that is above 1.

    Infinite where shapes differ, or what is not finite stands in other places.
    """
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if expected.shape != got.shape or not np.array_equal(_kinds(expected), _kinds(got)):
        return float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    return float(np.abs(expected[finite] - got[finite]).max() / max(1.0, np.abs(expected[finite]).max()))


def _kinds(values: np.ndarray) -> np.ndarray:
    """0 where finite, and a number for each of NaN and both infinities."""
    return np.where(np.isfinite(values), 0, np.nan_to_num(values, nan=1, posinf=2, neginf=3))


# --- all of them ------------------------------------------------------------------------------------------------------


def apart(reference: str, target: str) -> dict[str, Any]:
    """:func:`measure` in a process of its own, which a case may crash or fill."""
    command = [sys.executable, "-m", "benchmarks.cases", reference, "--target", target, "--here"]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        tail = " ".join(done.stderr.split())[-500:]
        found = json.loads(lines[-1]) if lines else {"outcome": "failed", "code": done.returncode, "reason": tail}
    except subprocess.TimeoutExpired:
        found = {"outcome": "failed", "code": 124, "reason": f"not done within {SECONDS:.0f} s"}
    return {"case": reference, "target": target, "seconds": round(time.monotonic() - start, 1), **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("references", nargs="+")
    parser.add_argument("--target", action="append", help=f"one or more; {', '.join(TARGETS)} if none is given")
    parser.add_argument("--out", type=Path, help="a file that receives a line of JSON per case and target")
    parser.add_argument("--resume", action="store_true", help="leave out what stands in --out")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    targets = chosen.target or TARGETS
    if chosen.here:
        print("\n" + json.dumps(measure(chosen.references[0], targets[0])))
        return 0
    lines = chosen.out.read_text().splitlines() if chosen.resume and chosen.out and chosen.out.exists() else []
    kept = {(row["case"], row["target"]): row for row in map(json.loads, lines)}
    wanted = [(case, target) for case in references(chosen.references) for target in targets]
    rows = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for row in pool.map(lambda pair: kept.get(pair) or apart(*pair), wanted):
            rows.append(row)
            print(
                f"{row['outcome']:8} {row['target']:17} {row['case']}  {row.get('reason') or row.get('share')}",
                flush=True,
            )
            if chosen.out:
                chosen.out.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for target in targets:
        own = [row["outcome"] for row in rows if row["target"] == target]
        counts = ", ".join(f"{own.count(what)} {what}" for what in ("right", "refused", "wrong", "failed"))
        print(f"{target}: {counts} of {len(own)}")
    return int(any(row["outcome"] in ("wrong", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
