"""A network that is a list of steps, such as an imported ONNX graph: who makes and who reads each value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

from torch import Tensor, nn

from edgeattn.pruning.axes import VENDOR, Shape


class Step(Protocol):
    """A call of a module in a graph; see :class:`edgeattn.sources.onnx.imported.Step`."""

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str
    op: str
    attributes: Mapping[str, Any]


@runtime_checkable
class Graph(Protocol):
    """A network that is a list of steps; see :class:`edgeattn.sources.onnx.imported.ImportedModel`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]

    def shapes(self) -> dict[str, Shape]:
        """Name of every value -> its shape."""
        ...


def is_graph(network: nn.Module) -> TypeGuard[Any]:
    """Whether a network is a list of steps."""
    return isinstance(network, Graph)


def linear_of(network: nn.Module, step: Step) -> str | None:
    """The linear layer whose outputs a step makes; None for another step."""
    module = network.get_submodule(step.path)
    if isinstance(module, nn.Linear):
        return step.path
    if step.op == f"{VENDOR}Attention" and isinstance(getattr(module, "projection", None), nn.Linear):
        return f"{step.path}.projection"
    return None


class Flow:
    """A graph with who makes and who reads each value, and its shapes."""

    def __init__(self, network: nn.Module) -> None:
        self.graph = cast(Graph, network)
        self.network = network
        self.shapes = self.graph.shapes()
        self.maker = {name: step for step in self.graph.steps for name in step.outputs if name}
        self.linears = [place for step in self.graph.steps if (place := linear_of(network, step)) is not None]
        self.readers: dict[str, list[Step]] = {}
        for step in self.graph.steps:
            for name in dict.fromkeys(step.inputs):
                self.readers.setdefault(name, []).append(step)

    def constants(self, step: Step) -> dict[int, tuple[str, Tensor]]:
        """Input -> the parameter or buffer of the step's module that is read there."""
        module: Any = self.network.get_submodule(step.path)
        if isinstance(module, nn.Embedding):
            return {0: ("weight", module.weight)}
        return {index: (name, getattr(module, name)) for index, name in getattr(module, "constants", {}).items()}

    def hidden(self, step: Step) -> dict[int, Tensor]:
        """Input -> what is read there and is no weight."""
        return dict(getattr(self.network.get_submodule(step.path), "hidden", {}))

    def sized(self, step: Step) -> tuple[str, Any]:
        """Path and module of a step's function, where that is a module with sizes that can be set."""
        module: Any = self.network.get_submodule(step.path)
        inner = getattr(module, "layer", None)
        return (step.path, module) if inner is None else (f"{step.path}.layer", inner)

    def operands(self, step: Step) -> list[Shape | None]:
        """Shapes of a step's inputs; None of those that are absent or were read on import."""
        shapes: dict[int, Shape] = {i: self.shapes[name] for i, name in enumerate(step.inputs) if name}
        shapes |= {i: tuple(tensor.shape) for i, (_, tensor) in self.constants(step).items()}
        shapes |= {i: tuple(tensor.shape) for i, tensor in self.hidden(step).items()}
        return [shapes.get(i) for i in range(max(shapes, default=-1) + 1)]


def expands(step: Step, module: Any) -> bool:
    """Whether a step repeats its input; one that is put beside itself is imported as that."""
    return step.op == "Expand" or (step.op == "Concat" and hasattr(module, "target"))
