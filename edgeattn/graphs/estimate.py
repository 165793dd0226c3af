"""How long a device that is not here takes for a bundle."""

from __future__ import annotations

from pathlib import Path

from edgeattn.bundle import Bundle, open_bundle
from edgeattn.graphs.counting import GraphFigures, computes_int8, file_figures
from edgeattn.targets import Target
from edgeattn.targets.calibration import calibrated_host
from edgeattn.targets.host import HOST
from edgeattn.targets.roofline import Efficiency, Estimate, estimate


def op_figures(bundle: Bundle) -> dict[str, GraphFigures]:
    """The operations of every graph of a bundle, by the graph's name.

    Raises:
        UnsupportedError: for control flow, whose work depends on values, and for a size that the file does not tell.
        BundleError: if a file cannot be read.
        MissingExtraError: without the package that reads the format.
    """
    manifest = bundle.manifest
    executed = manifest.precision.get("executed") or {}
    models = {graph: bundle.file(name) for graph, name in manifest.models.items()}
    return file_figures(manifest.backend, models, computes_int8(executed))


def estimate_bundle(
    path: Path | str, target: Target, threads: int = 1, efficiency: Efficiency | None = None
) -> Estimate:
    """How long one call of a bundle would take on a device, by the roofline.

    Of a model with several graphs it is one call of each, added up; a graph that stands in several sizes counts with
    its largest, as in a measured :class:`~edgeattn.profiling.figures.Latency`. What the host does (features, decoding)
    is not in it.

    Args:
        target: with the name ``cpu`` it is this machine, and its calibration is used.
        efficiency: None for what this machine's calibration tells, or what was seen elsewhere.

    Raises:
        EdgeattnError: as :func:`op_figures`, :func:`edgeattn.targets.roofline.estimate` and, for this machine,
            :func:`edgeattn.targets.calibration.calibrated_host`.
    """
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        figures = op_figures(bundle)
        spec = manifest.spec
        largest = [graphs[-1].name for graphs in spec.units().values()]
        golden = manifest.golden.file if manifest.golden is not None else None
        weights = sum(entry.size for name, entry in manifest.files.items() if name != golden)
        states = sum(state.nbytes for graph in spec.graphs for state in graph.states)
    if efficiency is None and target.name == HOST:
        target, efficiency = calibrated_host(manifest.backend, threads)
    ops = [op for name in largest for op in figures[name].ops]
    activations = max(graph.activation_bytes for graph in figures.values())
    return estimate(ops, target, manifest.backend, threads, efficiency, weights + states + activations)
