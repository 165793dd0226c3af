"""How inputs and outputs nest: containers that torch knows and keys that are names, written again."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from edgeattn.errors import load_extra
from edgeattn.guards.silence import silenced
from edgeattn.sources.program.refusals import MAX_NAME, Refused, described, said

KEY = re.compile(r"[\w@.:/ -]+")  # of a dict among inputs or outputs
TREES = (
    "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
    "torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict",
)  # fmt: skip
OUTPUTS = re.compile(r"(transformers\.(?:modeling_outputs|cache_utils|models\.\w+\.modeling_\w+))\.\w+", re.ASCII)


def tree_rule(text: str) -> str | None:
    """How inputs and outputs nest, written again. Contexts of other classes are imported by names that they give."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the tree of inputs or outputs is damaged: {said(error)}") from error
    if not isinstance(tree, list) or len(tree) != 2 or tree[0] != 1 or isinstance(tree[0], bool):
        raise Refused("the tree of inputs or outputs is of another version")
    return json.dumps([1, _branch(tree[1])])


def _branch(node: Any) -> dict[str, Any]:
    """A node of a tree: a leaf, or a container that torch knows and what is in it."""
    if not isinstance(node, dict) or not {"type", "context", "children_spec"} <= set(node):
        named = node.get("type") if isinstance(node, dict) else None
        if named is not None:
            _container(named)
        raise Refused("the tree of inputs or outputs is damaged: a node without type, context and children")
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is not None:
        _container(kind)
    if not isinstance(children, list):
        raise Refused("the tree of inputs or outputs is damaged: children must be a list")
    return {"type": kind, "context": _context(context), "children_spec": [_branch(child) for child in children]}


def _container(kind: Any) -> None:
    if kind in TREES:
        return
    found = OUTPUTS.fullmatch(kind) if isinstance(kind, str) else None
    if found is None:
        raise Refused(f"inputs or outputs are a {described(kind)}; export with tuples and dicts of tensors")
    _register(kind, found.group(1))


def _context(context: Any) -> str | None:
    """Keys of a dict, as the JSON of a JSON: text, numbers, lists of them."""
    if context is None:
        return None
    try:
        keys = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError) as error:
        raise Refused(f"the tree of inputs or outputs is damaged: {said(error)}") from error
    waiting = [keys]
    while waiting:
        key = waiting.pop()
        if isinstance(key, list):
            waiting.extend(key)
        elif isinstance(key, dict):
            raise Refused("the tree of inputs or outputs names a class; export with tuples and dicts of tensors")
        elif isinstance(key, str):
            if len(key) > MAX_NAME or not KEY.fullmatch(key) or key.startswith("__"):
                raise Refused(f"key {ascii(key)[:80]} of inputs or outputs is no name; export with names as keys")
        elif key is not None and (not isinstance(key, int) or abs(key) >= 2**63):
            raise Refused(f"key {ascii(key)[:80]} of inputs or outputs is no name; export with names as keys")
    return json.dumps(keys)


def _register(kind: str, module: str) -> None:
    """Import the module of transformers that defines an output, which makes it known to torch."""
    load_extra("transformers", "hf")
    try:
        with silenced():
            importlib.import_module(module)
    except Exception as error:  # a module of another extra, or none
        raise Refused(f"outputs are a {kind[:80]}, which this transformers does not have") from error
