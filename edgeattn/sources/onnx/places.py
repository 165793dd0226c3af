"""Where each node's module goes in the tree of modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from edgeattn.graphs.layers import module_path

if TYPE_CHECKING:
    import onnx


class Places:
    """Where each node's module goes in the tree."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.taken: set[str] = set()
        self.inner: set[str] = set()  # every path that has something below it
        for node in graph.node:
            for name in (*node.input, node.name, module_path(node)):
                parts = _parts(name)
                self.inner.update(".".join(parts[:i]) for i in range(1, len(parts) - 1))

    def place(self, root: nn.Module, node: onnx.NodeProto, origins: Sequence[str], module: nn.Module) -> str:
        """Put a module into the tree; its path."""
        scope = self._scope(node, origins)
        whole = bool(scope) and bool(origins) and scope not in self.inner and scope not in self.taken
        path = scope if whole else ".".join(p for p in (scope, _kind(node)) if p)
        *parents, leaf = path.split(".")
        at, done = root, ""
        for part in parents:
            at, name = _container(at, part)
            done = f"{done}.{name}" if done else name
        there = dict(at.named_children())
        number, base = 0, leaf
        while leaf in there or f"{done}.{leaf}".lstrip(".") in self.inner:
            number += 1
            leaf = f"{base}_{number}"
        at.add_module(leaf, module)
        path = f"{done}.{leaf}".lstrip(".")
        self.taken.add(path)
        return path

    @staticmethod
    def _scope(node: onnx.NodeProto, origins: Sequence[str]) -> str:
        told = module_path(node)
        if told:
            return ".".join(_parts(told))
        for name in origins:  # initializers are named after parameters, unless an exporter made them up
            if "." in name and "::" not in name and "/" not in name:
                return ".".join(_parts(name)[:-1])
        return ".".join(_parts(node.name)[:-1])


def _parts(name: str) -> list[str]:
    words = [re.sub(r"\W", "_", part) for part in re.split(r"[./]", name)]
    return [f"_{w}" if hasattr(nn.Module, w) else w for w in words if w]


def _kind(node: onnx.NodeProto) -> str:
    return re.sub(r"\W", "_", node.op_type)


def _container(at: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The child of that name that only holds others, made if need be; a node of that name keeps it to itself."""
    there = dict(at.named_children())
    while part in there and type(there[part]) is not nn.Module:
        part += "_"
    if part not in there:
        at.add_module(part, nn.Module())
    return at.get_submodule(part), part
