"""Rules of text: what each string of torch's schema may be. A rule returns the text, or None where it is refused."""

from __future__ import annotations

import keyword
import re
import types
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from edgeattn.sources.program.refusals import MAX_NAME, Refused
from edgeattn.sources.program.trees import tree_rule

MAX_TEXT = 10_000
MAX_SYMBOLIC = 2_000
# Operators that read and write numbers. aten.from_file opens a file of its own choice.
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(?!from_file\b)"
    r"(?:_?[a-zA-Z0-9]\w*|__i?(?:and|or|xor|lshift|rshift)__)(\.[a-zA-Z]\w*)?"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|map_impl)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|abs|pow|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|index"
    r"|lshift|rshift|itruediv|iadd|isub|imul)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\._?sym_\w+",
    re.ASCII,
)
# Sizes as sympy writes them: Mul(Integer(2), Symbol('s27', positive=True, integer=True)), or 2*s27.
SYMBOL = re.compile(r"Symbol\('([a-z]{1,4}[0-9]{1,9})'(?:, [a-z_]+=(?:True|False))*\)")
SYMBOLIC = re.compile(
    r"(?:\s|[-+*/%(),<>=&|~!]|\b\d{1,20}(?:\.\d{1,20})?\b|\b(?:[a-z]{1,4}\d{1,9}|int_oo|oo|True|False"
    r"|Integer|Rational|Add|Mul|Pow|Max|Min|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Abs|floor|ceiling|sqrt"
    r"|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt"
    r"|RoundDecimal|ToFloat|Identity)\b)*",
    re.ASCII,
)
POWER = re.compile(r"\*\*|Pow")
SMALL_POWER = re.compile(
    r"\b[a-z]{1,4}\d+\*\*\d\b|\bPow(?:ByNatural)?\([a-z]{1,4}\d+, ?(?:Integer\(\d\)|\d)\)", re.ASCII
)
PART = re.compile(r"[\w@-]+")  # of a module's path; a ModuleDict's key may hold a hyphen
STACK = re.compile(r"(?P<key>[\w@.-]*),(?P<path>[\w@.-]*),(?P<type>.*)")  # one module of nn_module_stack
STACK_END = ";"
MODULE = "torch.nn.modules.module.Module"  # what every class of a stack is called: nothing reads which it was


def held_text(rule: Callable[[str], str | None], value: Any, place: str) -> str:
    """A text as its rule lets it through.

    Args:
        place: for the message.

    Raises:
        Refused: saying what the text is not.
    """
    kept = rule(value) if isinstance(value, str) else None
    if kept is None:
        raise Refused(f"{'operator' if rule is operator_rule else place} {ascii(value)[:80]} is {WANTED[rule]}")
    return kept


def name_rule(text: str) -> str | None:
    """A name that torch writes into Python source as it stands."""
    same = len(text) <= MAX_NAME and text.isidentifier() and unicodedata.normalize("NFKC", text) == text
    return text if same and not keyword.iskeyword(text) and not text.startswith("__") else None


def argument_rule(text: str) -> str | None:
    """The name of an operator's argument; those of higher order have none."""
    return name_rule(text) if text else text


def path_rule(text: str) -> str | None:
    """A path of modules: names and indices with dots between. Torch writes it into source, the parts in quotes."""
    if len(text) > MAX_NAME:
        return None
    parts = text.split(".") if text else []
    plain = all(PART.fullmatch(part) and not part.startswith("__") and not keyword.iskeyword(part) for part in parts)
    return text if plain else None


def _known(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern, re.ASCII)
    return lambda text: text if compiled.fullmatch(text) else None


def operator_rule(text: str) -> str | None:
    """A function that a program calls: one of :data:`OPERATOR`, and no attribute of torch's that is none."""
    if len(text) > MAX_NAME or not OPERATOR.fullmatch(text):
        return None
    import torch

    found: Any = torch
    for part in text.split(".")[1:] if text.startswith("torch.ops.") else ():
        found = getattr(found, part, None)  # unknown ones are told by torch
    attribute = callable(found) and not isinstance(found, (types.ModuleType, torch._ops.OperatorBase))  # noqa: SLF001
    return None if attribute else text


def symbolic_rule(text: str) -> str | None:
    """Sympy evaluates these as Python."""
    if len(text) > MAX_SYMBOLIC:
        return None
    plain = SYMBOL.sub(r"\1", text)
    # A power of powers takes years: symbols alone may be raised, to one digit.
    return text if SYMBOLIC.fullmatch(plain) and not POWER.search(SMALL_POWER.sub("", plain)) else None


def value_rule(text: str) -> str | None:
    """Text that a program computes with, "ij,jk->ik"; torch writes its repr into source."""
    return text if len(text) <= MAX_TEXT and (text.isprintable() or not text) else None


def kept_metadata(given: Mapping[str, Any]) -> dict[str, str]:
    """Of what is said of a node, where its module stands; the names of classes are not needed."""
    stack = given.get("nn_module_stack")
    if not stack:
        return {}
    modules = []
    for entry in str(stack).split(STACK_END):
        found = STACK.fullmatch(entry)
        if found is None or path_rule(found["path"]) is None or len(found["key"]) > MAX_NAME:
            return {}  # where it stands is told to people alone: without it the program runs as well
        modules.append(f"{found['key']},{found['path']},{MODULE}")
    return {"nn_module_stack": STACK_END.join(modules)}


device_rule = _known("[a-z]{2,16}")
dialect_rule = _known("[A-Z_]{0,32}")
version_rule = _known(r"[\w.+<=-]{0,64}")
WANTED: Mapping[Callable[[str], str | None], str] = {
    name_rule: "no name: names are identifiers and no keywords of Python",
    argument_rule: "no name of an argument",
    path_rule: "no path of modules: names and numbers with dots between, no keywords of Python",
    operator_rule: ("none that is read; aten's are: decompose it (program.run_decompositions()) or write a factory"),
    symbolic_rule: "no size of a tensor",
    value_rule: "no printable text",
    tree_rule: "no tree of inputs or outputs",
    device_rule: "no device",
    dialect_rule: "no dialect",
    version_rule: "no version",
}
STRINGS: Mapping[str, Callable[[str], str | None]] = {
    "Device.type": device_rule,
    "SymExpr.expr_str": symbolic_rule,
    "SymIntArgument.as_name": name_rule,
    "SymFloatArgument.as_name": name_rule,
    "SymBoolArgument.as_name": name_rule,
    "TensorArgument.name": name_rule,
    "TokenArgument.name": name_rule,
    "GraphArgument.name": name_rule,
    "Argument.as_string": value_rule,
    "Argument.as_strings": value_rule,
    "Argument.as_operator": operator_rule,
    "NamedArgument.name": argument_rule,
    "Node.target": operator_rule,
    "Node.name": name_rule,
    "ConstantValue.as_string": value_rule,
    "InputToConstantInputSpec.name": name_rule,
    "InputToParameterSpec.parameter_name": path_rule,
    "InputToBufferSpec.buffer_name": path_rule,
    "InputToTensorConstantSpec.tensor_constant_name": path_rule,
    "BufferMutationSpec.buffer_name": path_rule,
    "ParameterMutationSpec.parameter_name": path_rule,
    "GradientToParameterSpec.parameter_name": path_rule,
    "GradientToUserInputSpec.user_input_name": name_rule,
    "UserInputMutationSpec.user_input_name": name_rule,
    "ModuleCallSignature.in_spec": tree_rule,
    "ModuleCallSignature.out_spec": tree_rule,
    "ModuleCallSignature.forward_arg_names": name_rule,
    "ModuleCallEntry.fqn": path_rule,
    "ExportedProgram.verifiers": dialect_rule,
    "ExportedProgram.torch_version": version_rule,
    "PayloadMeta.path_name": name_rule,
}
"""Field of torch's schema -> the rule of its text."""
KEYS: Mapping[str, Callable[[str], str | None]] = {
    "Argument.as_string_to_argument": name_rule,
    "Node.metadata": name_rule,  # kept by kept_metadata()
    "Graph.tensor_values": name_rule,
    "Graph.sym_int_values": name_rule,
    "Graph.sym_bool_values": name_rule,
    "Graph.sym_float_values": name_rule,
    "Graph.custom_obj_values": name_rule,
    "ExportedProgram.opset_version": name_rule,
    "ExportedProgram.range_constraints": symbolic_rule,
    "PayloadConfig.config": path_rule,
}
"""Field that is a dict -> the rule of its keys."""
DROPPED = frozenset((
    "GraphModule.metadata", "GraphModule.treespec_namedtuple_fields", "ExportedProgram.guards_code",
))  # fmt: skip
"""Free text. The guards check what the ranges of the program check again."""
