"""The copy of a model that recovery trains: rounded while it runs, and made a model again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_module
import torch

from edgeattn.engines import Treatment
from edgeattn.errors import UnsupportedError
from edgeattn.graphs.layers import LinearLayer, fingerprint, linear_layers
from edgeattn.model import Arrays, EdgeModel
from edgeattn.quantize.fake_quant import (
    Products,
    Reached,
    copied,
    reach,
    rounded_activation,
    rounded_rows,
    rounded_weight,
    straight_through,
    unique,
)
from edgeattn.quantize.plan import Plan
from edgeattn.quantize.qdq import MIN_SCALE, activation_scales, worthwhile

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scale:
    """Of an activation: the calibrated one, times the exponential of ``change`` where it is learned.

    Learning the logarithm makes a step of Adam a share of the scale, whatever its size.
    """

    initial: float
    change: torch.nn.Parameter | None

    def value(self) -> torch.Tensor:
        """float32, shape ()."""
        if self.change is None:
            return torch.tensor(self.initial)
        return (self.initial * self.change.exp()).clamp_min(MIN_SCALE)


class Student:
    """The copy of a model that is trained, rounded while it runs.

    Attributes:
        modules: one per graph; they share what the source's share.
        inputs: graph -> full input sets.
        trained: parameters, each once.
        calibrated: paths of int8 layers whose scales are not learned.
        untrained: paths of layers that the plan rounds and whose weights stay.
    """

    def __init__(
        self,
        model: EdgeModel,
        onnx: Mapping[str, Path],
        samples: Mapping[str, list[Arrays]],
        plan: Plan,
        dynamic: bool,
    ) -> None:
        self.source = model
        self.dynamic = dynamic
        self.modules = copied(model.modules)
        self.inputs = {graph: [_tensors(sample) for sample in given] for graph, given in samples.items()}
        files = {graph: onnx_module.load(path) for graph, path in onnx.items()}
        layers = {graph: linear_layers(file.graph) for graph, file in files.items()}
        asked = plan.resolve(layer.path for found in layers.values() for layer in found)
        self.treatments = {
            graph: {layer: self._treatment(layer, asked[layer.path]) for layer in found}
            for graph, found in layers.items()
        }
        self.flags = _flags(self.modules)
        self.reached = {
            graph: reach(self.modules[graph], self.inputs[graph][0], file, layers[graph])
            for graph, file in files.items()
        }
        self.trained = unique(p for graph, found in self.reached.items() for p in self._trainable(graph, found))
        self.untrained = self._untrained()
        if not self.trained or not any(self._rounds(graph) for graph in files):
            raise UnsupportedError(
                f"no layer that the plan rounds can be trained; it has {', '.join(self.untrained) or 'none'}"
            )
        self.scales, self.groups, self.calibrated = self._scales(files, samples)
        for parameter, _ in self.flags:
            parameter.requires_grad_(False)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.rounded: dict[tuple[Any, ...], torch.Tensor] = {}

    @property
    def learned_scales(self) -> list[torch.nn.Parameter]:
        """Logarithms of the changes of scales."""
        return [scale.change for _, scale in self.groups if scale.change is not None]

    def run(self, graph: str, inputs: Tensors) -> Tensors:
        """Outputs of the rounded graph, with gradients if they are on."""
        reached, treatments = self.reached[graph], self.treatments[graph]

        def product(index: int, x: Any, weight: Any, _: Any, axis: int) -> tuple[Any, Any]:
            layer = reached.layers.get(index)
            treatment = "float" if layer is None else treatments[layer]
            if layer is None or treatment == "float":
                return x, weight
            if treatment == "int8" and self.dynamic:
                x = rounded_rows(x)
            elif treatment == "int8":
                x = rounded_activation(x, self.scales[graph, layer.activation].value())
            return x, straight_through(weight, self._weight(index in reached.weights, weight, axis, treatment))

        outputs: Tensors
        with Products(product):
            outputs = self.modules[graph](**inputs)
        return outputs

    def changed(self) -> None:
        """Weights were written: round them again."""
        self.rounded.clear()

    def finish(self) -> None:
        """Leave the modules as modules that were never trained are."""
        self.changed()
        for parameter, flag in self.flags:
            parameter.grad = None
            parameter.requires_grad_(flag)

    def learned(self) -> dict[str, float]:
        """Layer path -> scale."""
        return {
            path: float(scale.value().detach())
            for paths, scale in self.groups
            if scale.change is not None
            for path in paths
        }

    def model(self) -> EdgeModel:
        """The source with these modules, and its ONNX and its other sizes with these weights."""
        source = self.source
        files = {graph: self._patched(graph, file) for graph, file in source.onnx.items()}
        resize = source.resize

        def resized(graph: str, inputs: Arrays) -> tuple[torch.nn.Module, onnx_module.ModelProto | None]:
            assert resize is not None
            module, file = resize(graph, inputs)
            module = copied({graph: module})[graph]  # it may hold layers of the source, which stays as it is
            _share_trained(source.modules[graph], self.modules[graph], module)
            return module, None if file is None else self._patched(graph, file)

        return replace(source, modules=self.modules, onnx=files, resize=None if resize is None else resized)

    def _treatment(self, layer: LinearLayer, asked: Treatment) -> Treatment:
        # An engine that finds scales as it runs rounds a single row and raw features too.
        return worthwhile(replace(layer, rows=2, raw=False), asked) if self.dynamic else worthwhile(layer, asked)

    def _rounds(self, graph: str) -> bool:
        return any(self.treatments[graph][layer] != "float" for layer in self.reached[graph].layers.values())

    def _trainable(self, graph: str, reached: Reached) -> Iterator[torch.nn.Parameter]:
        if graph not in self.source.onnx:
            yield from reached.weights.values()
            yield from reached.affine
            return
        # Its file is found again by the content of a weight; another parameter with the same content would go astray.
        counts: dict[str, int] = {}
        for parameter, _ in _flags({graph: self.modules[graph]}):
            for key in _fingerprints(parameter):
                counts[key] = counts.get(key, 0) + 1
        yield from (p for p in reached.weights.values() if all(counts[key] == 1 for key in _fingerprints(p)))

    def _untrained(self) -> tuple[str, ...]:
        ids = {id(parameter) for parameter in self.trained}
        paths: dict[str, None] = {}
        for graph, reached in self.reached.items():
            kept = {layer.path for i, layer in reached.layers.items() if id(reached.weights.get(i)) not in ids}
            rounded = {layer.path for layer, treatment in self.treatments[graph].items() if treatment != "float"}
            paths.update(dict.fromkeys(sorted(rounded & (kept | set(reached.missing)))))
        return tuple(paths)

    def _weight(self, kept: bool, weight: torch.Tensor, axis: int, treatment: Treatment) -> torch.Tensor:
        if not kept:  # computed on the way: its memory may be another's in the next call
            return rounded_weight(weight, axis, treatment)
        key = (weight.data_ptr(), weight.shape, weight.stride(), axis, treatment)
        if key not in self.rounded:
            self.rounded[key] = rounded_weight(weight, axis, treatment)
        return self.rounded[key]

    def _scales(
        self, files: Mapping[str, onnx_module.ModelProto], samples: Mapping[str, list[Arrays]]
    ) -> tuple[dict[tuple[str, str], Scale], list[tuple[tuple[str, ...], Scale]], tuple[str, ...]]:
        """Scale by graph and tensor, the learned ones with the paths of their layers, and paths with others."""
        static = {
            graph: [layer for layer, treatment in found.items() if treatment == "int8"]
            for graph, found in self.treatments.items()
        }
        if self.dynamic or not any(static.values()):
            return {}, [], ()
        initial = {
            (graph, name): scale
            for graph, found in static.items()
            for name, scale in activation_scales(
                files[graph], sorted({layer.activation for layer in found}), samples[graph]
            ).items()
        }
        scales: dict[Any, Scale] = {}
        groups: list[tuple[tuple[str, ...], Scale]] = []
        calibrated: list[str] = []
        for paths, tensors, one in _scale_groups(static, files):
            if not one:
                calibrated.extend(paths)
                scales.update({key: Scale(initial[key], None) for key in tensors})
                continue
            shared = Scale(max(initial[key] for key in tensors), torch.nn.Parameter(torch.zeros(())))
            groups.append((paths, shared))
            scales.update(dict.fromkeys(tensors, shared))
        return scales, groups, tuple(calibrated)

    def _patched(self, graph: str, file: onnx_module.ModelProto) -> onnx_module.ModelProto:
        """A copy of a file with the trained weights in the places of those with their old content."""
        ids = {id(parameter) for parameter in self.trained}
        before = dict(self.source.modules[graph].named_parameters())
        new: dict[str, torch.Tensor] = {}
        for name, parameter in self.modules[graph].named_parameters():
            if id(parameter) in ids:
                new.update(zip(_fingerprints(before[name]), (parameter, parameter.t()), strict=True))
        patched = type(file)()
        patched.CopyFrom(file)
        for tensor in patched.graph.initializer:
            if len(tensor.dims) == 2 and tensor.data_type == onnx_module.TensorProto.FLOAT:
                key = fingerprint(onnx_module.numpy_helper.to_array(tensor), 0)
                if key in new:
                    array = np.ascontiguousarray(new[key].detach().numpy())
                    tensor.CopyFrom(onnx_module.numpy_helper.from_array(array, tensor.name))
        return patched


def _flags(modules: Mapping[str, torch.nn.Module]) -> list[tuple[torch.nn.Parameter, bool]]:
    """Every parameter once, with whether it wants gradients."""
    found = {id(p): (p, p.requires_grad) for module in modules.values() for p in module.parameters()}
    return list(found.values())


def _fingerprints(parameter: torch.nn.Parameter) -> tuple[str, ...]:
    """Of a two-dimensional parameter, as it is and transposed."""
    if parameter.ndim != 2:
        return ()
    array = parameter.detach().numpy()
    return fingerprint(array, 0), fingerprint(array, 1)


def _tensors(sample: Mapping[str, np.ndarray]) -> Tensors:
    return {name: torch.from_numpy(array if array.flags.writeable else array.copy()) for name, array in sample.items()}


def _share_trained(source: torch.nn.Module, trained: torch.nn.Module, module: torch.nn.Module) -> None:
    """Give a module of another size the trained parameters in the places of the source's."""
    before = dict(source.named_parameters(remove_duplicate=False))
    after = dict(trained.named_parameters(remove_duplicate=False))
    for path, part in module.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            place = f"{path}.{name}" if path else name
            if place in before and before[place].shape == parameter.shape and torch.equal(before[place], parameter):
                part.register_parameter(name, after[place])


def _scale_groups(
    static: Mapping[str, Sequence[LinearLayer]], files: Mapping[str, onnx_module.ModelProto]
) -> Iterator[tuple[tuple[str, ...], list[tuple[str, str]], bool]]:
    """What must have one scale because it is one tensor or one path: paths, tensors, and whether it can have one.

    Layers that read one tensor share its scale; an export knows scales by path. So a path with two tensors in one
    graph, or with other weights in another graph, has no scale that fits.
    """
    found = [(graph, layer) for graph, layers in static.items() for layer in layers]
    arrays = {graph: {t.name: t for t in file.graph.initializer} for graph, file in files.items()}
    left = list(found)
    while left:
        group, grown = [left.pop(0)], True
        while grown:
            paths = {layer.path for _, layer in group}
            tensors = {(graph, layer.activation) for graph, layer in group}
            more = [e for e in left if e[1].path in paths or (e[0], e[1].activation) in tensors]
            left = [e for e in left if e not in more]
            group, grown = group + more, bool(more)
        weights: dict[str, dict[str, set[str]]] = {}
        for graph, layer in group:
            array = onnx_module.numpy_helper.to_array(arrays[graph][layer.weight])
            weights.setdefault(layer.path, {}).setdefault(graph, set()).add(fingerprint(array, layer.axis))
        same = all(len(set(map(frozenset, by_graph.values()))) == 1 for by_graph in weights.values())
        one = same and len(tensors) == len({graph for graph, _ in tensors})
        yield tuple(sorted(paths)), sorted(tensors), one
