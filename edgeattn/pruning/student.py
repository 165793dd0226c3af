"""The student with its teacher: both run on stacks of samples, outputs and residual streams compared."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.distillation import (
    Item,
    Loss,
    TeacherCache,
    Tensors,
    measured_loss,
)
from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.graph_loss import Hook
from edgeattn.pruning.runs import TARGET, Run, as_tensor, stacked
from edgeattn.spec import GraphSpec

SAME = 1e-5  # largest difference of outputs of samples run together and alone, relative to the largest beyond 1


@dataclass(frozen=True)
class RecoveryOptions:
    """How to train.

    Attributes:
        seconds: after which it has ended, from checking the data to the last metric; runs that went on from a
            checkpoint included.
        learning_rate: highest; it rises to it over the first twentieth of the time and then falls to zero. None for
            the one that fits the model's width, see :func:`~edgeattn.pruning.recovery.fitting_rate`.
        batch: runs per step.
        hidden: weight of the residual stream's error against that of the outputs; 0 leaves it out.
        temperature: that distributions are softened by.
        truncate: steps of a run between two updates; gradients do not reach further back through states.
        seed: of the order of the runs.
        threads: of torch; 0 for one if the model is a stream, else for those that torch has.
        device: that is trained on, by torch's name; empty for the first GPU that torch sees, else the processor.
        checkpoint: file that is written on the way and left in place; a run of the same models, data and options goes
            on from it, also with more seconds.
    """

    seconds: float = 600.0
    learning_rate: float | None = None
    batch: int = 32
    hidden: float = 1.0
    temperature: float = 1.0
    truncate: int = 4
    seed: int = 0
    threads: int = 0
    device: str = ""
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if not (math.isfinite(self.hidden) and self.hidden >= 0):
            raise ValueError(f"hidden must be 0 or more, got {self.hidden}")
        for name, least in (("batch", 1), ("truncate", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@contextlib.contextmanager
def residuals(network: nn.Module, wanted: Mapping[str, tuple[str, int]]) -> Iterator[Tensors]:
    """While open, what the named layers give lands in the yielded dict under their names.

    Args:
        wanted: name -> stack's path and number of the layer.
    """
    seen: Tensors = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            if isinstance(first, Tensor):
                seen[name] = first

        return keep

    def stepped(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            output = step(*args, **named)
            seen[name] = output[0]
            return output

        return call

    modules: dict[str, Any] = {
        name: network.get_submodule(f"{path}.{number}") for name, (path, number) in wanted.items()
    }
    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    with_step = {name: module for name, module in modules.items() if callable(getattr(module, "step", None))}
    for name, module in with_step.items():  # a layer of a stream is not called but stepped, with its states
        module.step = stepped(name, module.step)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for module in with_step.values():
            del module.step


def matched(anatomy: Anatomy, cut: Cut) -> dict[str, tuple[tuple[str, int], tuple[str, int]]]:
    """Which layer of the student learns which layer of the original.

    A layer learns the last one of the original before the next that is left: a layer before a gap does the gap's work,
    and what follows finds the residual stream that it knows.

    Returns:
        name -> (stack's path, number) in the student, and in the original.
    """
    pairs = {}
    for stack in anatomy.stacks:
        kept = cut.layers.get(stack.path, tuple(range(stack.layers)))
        following = [*kept[1:], stack.layers]
        for place, after in enumerate(following):
            pairs[f"layer {stack.path}.{place}"] = ((stack.path, place), (stack.path, after - 1))
    return pairs


class Side:
    """One of the two models, run on stacks of samples."""

    def __init__(self, model: EdgeModel, layers: Mapping[str, tuple[str, int]], device: torch.device) -> None:
        assert model.network is not None, "checked before"
        self.model, self.network, self.layers, self.device = model, model.network, layers, device

    def initial(self, graph: GraphSpec, count: int) -> Tensors:
        """States of that many runs at their start."""
        made = self.model.spec.graph(graph.name).initial_states()
        return {name: as_tensor(np.concatenate([state] * count)).to(self.device) for name, state in made.items()}

    def step(self, name: str, inputs: Mapping[str, np.ndarray], states: Tensors) -> tuple[Tensors, Tensors]:
        """Float outputs with the residual streams, and the next states."""
        graph = self.model.spec.graph(name)
        arrays = {tensor.name: inputs[tensor.name] for tensor in graph.inputs}
        stream = self.model.spec.stream
        if stream is not None:  # the student's left context may be shorter; a cache fills from its right end
            keys = stream.left + stream.chunk
            arrays[stream.bias] = arrays[stream.bias][..., -keys:]
        tensors = {key: as_tensor(array).to(self.device) for key, array in arrays.items()}
        with residuals(self.network, self.layers) as hidden:
            given = self.model.modules[name](**tensors, **states)
        outputs = {t.name: given[t.name] for t in graph.outputs if given[t.name].is_floating_point()}
        return {**outputs, **hidden}, {state.input: given[state.output] for state in graph.states}


@dataclass
class Progression:
    """A stack of runs on its way, the longest first.

    Attributes:
        targets: per run and step, the teacher's float outputs with a leading 1.
    """

    graph: str
    runs: list[Run]
    targets: list[list[Tensors]]
    states: Tensors
    place: int = 0

    def count(self) -> int:
        """Runs that have a step here."""
        return sum(len(run) > self.place for run in self.runs)

    def inputs(self) -> dict[str, np.ndarray]:
        """Of all runs that have a step here, stacked."""
        here = [run[self.place] for run in self.runs[: self.count()]]
        return {key: stacked([arrays[key] for arrays in here], key.startswith(TARGET)) for key in here[0]}

    def wanted(self) -> Tensors:
        """The teacher's outputs here, stacked."""
        here = [steps[self.place] for steps in self.targets[: self.count()]]
        if len(here) == 1:
            return here[0]
        return {key: torch.cat([tensors[key] for tensors in here]) for key in here[0]}

    def carried(self) -> Tensors:
        """States of the runs that have a step here."""
        return {name: state[: self.count()] for name, state in self.states.items()}


class Learner:
    """The student with its teacher: see :class:`~edgeattn.distillation.Learner`."""

    def __init__(
        self,
        teacher: EdgeModel,
        pairs: Mapping[str, tuple[tuple[str, int], tuple[str, int]]],
        student: EdgeModel,
        runs: Mapping[str, list[Run]],
        options: RecoveryOptions,
        hook: Hook | None,
        device: torch.device,
    ) -> None:
        """Prepare.

        Args:
            pairs: layers of the student and of the teacher, see :func:`matched`.
        """
        assert student.network is not None
        pairs = pairs if options.hidden else {}
        self.teacher = Side(teacher, {name: old for name, (_, old) in pairs.items()}, device)
        self.student = Side(student, {name: new for name, (new, _) in pairs.items()}, device)
        self.network, self.runs, self.options, self.hook = student.network, runs, options, hook
        self.hidden = frozenset(pairs)
        self.flags = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
        self.trained = [parameter for parameter, _ in self.flags if parameter.is_floating_point()]
        if not self.trained:
            raise UnsupportedError(f"{student.spec.name}: the network has no float parameter to train")
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.kept: TeacherCache[list[Tensors]] = TeacherCache()
        self.distance = Loss({}, frozenset())
        with torch.no_grad():
            self.together = {graph: self._together(graph, own) for graph, own in runs.items()}

    @property
    def groups(self) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """All parameters alike."""
        return [(self.trained, 1.0)]

    def prepare(self, held_out: Sequence[Item]) -> None:
        """Measure what errors are relative to."""
        stream = self.teacher.model.spec.stream
        outputs = (
            (stack[0][0], step) for stack in self._stacks(held_out) for run in self._targets(stack) for step in run
        )
        self.distance = measured_loss(
            outputs, None if stream is None else stream.scores, self.options.temperature, self.hidden, squared=False
        )

    def grouped(self, items: Sequence[Item]) -> list[list[Item]]:
        """Items by the shapes of their inputs: those of one group can be stacked."""
        groups: dict[Any, list[Item]] = {}
        for item in items:
            groups.setdefault(self._shapes(item), []).append(item)
        return list(groups.values())

    def changed(self) -> None:
        """Nothing depends on the parameters."""

    def finish(self) -> None:
        """Leave the network as one that was never trained is."""
        for parameter, flag in self.flags:
            parameter.grad = None
            parameter.requires_grad_(flag)

    def loss(self, items: Sequence[Item], over: Callable[[], bool]) -> float | None:
        """Mean over all steps of the items."""
        total, rows = 0.0, 0
        with torch.no_grad():
            for stack in self._stacks(items):
                going = self._start(stack)
                while count := going.count():
                    if over():
                        return None
                    total += count * float(self._step(going))
                    rows += count
        return total / rows

    def backward(self, items: Sequence[Item]) -> Iterator[float]:
        """Gradients of all stacks over a few steps, then an update, until every run has ended."""
        going = [self._start(stack) for stack in self._stacks(items)]
        while any(stack.count() for stack in going):
            ahead = [
                sum(len(run) > place for run in stack.runs for place in range(stack.place, stack.place + self.window))
                for stack in going
            ]
            total = 0.0
            for stack in going:
                losses = []
                for _ in range(self.window):
                    count = stack.count()
                    if count:
                        losses.append(self._step(stack) * (count / sum(ahead)))
                if losses:
                    loss = torch.stack(losses).sum()
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
                stack.states = {name: state.detach() for name, state in stack.states.items()}
            yield total

    @property
    def window(self) -> int:
        """Steps between two updates."""
        return self.options.truncate

    def _step(self, going: Progression) -> Tensor:
        """The mean loss of one step of a stack, which is then one step further."""
        inputs, wanted = going.inputs(), going.wanted()
        outputs, states = self.student.step(going.graph, inputs, going.carried())
        targets = {name: value for name, value in wanted.items() if name not in self.hidden}
        loss = self.distance(going.graph, outputs, targets)
        hidden = [
            self.distance.error(going.graph, name, outputs[name], wanted[name])
            for name in sorted(self.hidden & wanted.keys() & outputs.keys())
            if outputs[name].shape == wanted[name].shape
        ]
        if hidden:
            loss = loss + self.options.hidden * torch.stack(hidden).mean()
        if self.hook is not None:
            given = {key: as_tensor(array).to(self.student.device) for key, array in inputs.items()}
            loss = loss + self.hook(outputs, given)
        going.states = states
        going.place += 1
        return loss

    def _stacks(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """Items that run together, the longest first."""
        for group in self.grouped(items):
            size = self.options.batch if self.together[group[0][0]] else 1
            ordered = sorted(group, key=lambda item: -len(self.runs[item[0]][item[1]]))
            for start in range(0, len(ordered), size):
                yield ordered[start : start + size]

    def _start(self, stack: Sequence[Item]) -> Progression:
        graph = stack[0][0]
        runs = [self.runs[graph][number] for _, number in stack]
        states = self.student.initial(self.student.model.spec.graph(graph), len(stack))
        return Progression(graph, runs, self._targets(stack), states)

    def _targets(self, stack: Sequence[Item]) -> list[list[Tensors]]:
        """The teacher's outputs of each run of a stack, per step."""
        missing = [item for item in stack if self.kept.get(item) is None]
        made: dict[Item, list[Tensors]] = {item: [] for item in missing}
        if missing:
            graph = missing[0][0]
            runs = [self.runs[graph][number] for _, number in missing]
            states = self.teacher.initial(self.teacher.model.spec.graph(graph), len(missing))
            going = Progression(graph, runs, [], states)
            with torch.no_grad():
                while count := going.count():
                    outputs, going.states = self.teacher.step(graph, going.inputs(), going.carried())
                    for row, item in enumerate(missing[:count]):
                        alone = count == 1
                        made[item].append({k: (v if alone else v[row : row + 1]).clone() for k, v in outputs.items()})
                    going.place += 1
            for item, steps in made.items():
                self.kept.keep(item, steps, (tensor for step in steps for tensor in step.values()))
        return [self.kept.get(item) or made[item] for item in stack]

    def _shapes(self, item: Item) -> tuple[Any, ...]:
        first = self.runs[item[0]][item[1]][0]
        return (item[0], *((name, array.shape) for name, array in sorted(first.items())))

    def _together(self, graph: str, runs: Sequence[Run]) -> bool:
        """Whether two samples give the same stacked as each alone, over two steps."""
        groups = self.grouped([(graph, number) for number in range(len(runs))])
        pair = next((group[:2] for group in groups if len(group) > 1), None)
        if pair is None:
            return True  # nothing is ever stacked
        chosen = [runs[number][:2] for _, number in pair]
        spec = self.teacher.model.spec.graph(graph)
        if any(tensor.shape[:1] != (1,) for tensor in (*spec.inputs, *spec.outputs)):
            return False
        steps = min(map(len, chosen))
        for side in (self.teacher, self.student):
            if any(state.shape[:1] != (1,) for state in side.model.spec.graph(graph).states):
                return False
            try:
                both = self._outputs(side, graph, chosen, steps)
            except Exception:  # noqa: BLE001  # forward may check its inputs in any way
                return False
            for row, run in enumerate(chosen):
                for got, alone in zip(both, self._outputs(side, graph, [run], steps), strict=True):
                    for name, wanted in alone.items():
                        if got[name].shape[0] != 2 or not _same(got[name][row : row + 1], wanted):
                            return False
        return True

    def _outputs(self, side: Side, graph: str, runs: Sequence[Run], steps: int) -> list[Tensors]:
        going = Progression(graph, list(runs), [], side.initial(side.model.spec.graph(graph), len(runs)))
        made = []
        for _ in range(steps):
            outputs, going.states = side.step(graph, going.inputs(), going.carried())
            going.place += 1
            made.append(outputs)
        return made


def _same(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape:
        return False
    finite = wanted.isfinite()
    if not finite.any():
        return True
    scale = max(1.0, float(wanted[finite].abs().max()))
    return float((got - wanted)[finite].abs().max()) <= SAME * scale
