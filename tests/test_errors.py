"""The tree drawn in errors.py is the tree that exists, and every error has its exit code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from edgeattn import errors

CLASSES: dict[str, type[errors.EdgeattnError]] = {
    name: item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, errors.EdgeattnError)
}
EXIT_CODES = {"EdgeattnError": 2, "DeviceError": 3, "UnsupportedError": 4}  # the others inherit


def drawn() -> dict[str, str]:
    """Class -> its base, as the drawing at the top of errors.py has them."""
    path: list[tuple[int, str]] = []
    tree = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^( {4}[|` ]*(?:-- )?)([A-Z]\w+Error)\b", line)
        if found:
            depth = len(found[1])
            path = [(d, name) for d, name in path if d < depth]
            tree[found[2]] = path[-1][1] if path else "Exception"
            path.append((depth, found[2]))
    return tree


def test_the_drawing_matches_the_classes() -> None:
    assert drawn() == {name: item.__bases__[0].__name__ for name, item in CLASSES.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_has_its_exit_code(name: str) -> None:
    wanted = next(EXIT_CODES[base.__name__] for base in CLASSES[name].__mro__ if base.__name__ in EXIT_CODES)
    assert CLASSES[name].exit_code == wanted


def test_a_missing_extra_is_one_clear_error_with_the_command() -> None:
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'edgeattn\[speech\]'"):
        errors.load_extra("no_such_package_here", "speech")


def test_a_broken_install_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import its_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency"):
        errors.load_extra("half_installed", "speech")


def test_a_present_extra_is_the_module() -> None:
    assert errors.load_extra("json.decoder", "speech").__name__ == "json.decoder"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("openvin", "unknown engine 'openvin', did you mean 'openvino'? Valid: litert, openvino"),
        ("zzz", "unknown engine 'zzz'. Valid: litert, openvino"),
    ],
)
def test_an_unknown_name_lists_the_valid_ones(name: str, sentence: str) -> None:
    assert errors.unknown_name("engine", name, ["openvino", "litert"]) == sentence


def test_an_error_of_another_process_is_raised_as_what_it_was() -> None:
    there = errors.error_from(errors.error_facts(errors.UnsupportedError("no int4")), "ssh://pi@board")
    assert type(there) is errors.UnsupportedError
    assert str(there) == "ssh://pi@board: no int4"
    assert str(errors.error_from(errors.error_facts(errors.DeviceError("lost")))) == "lost"


@pytest.mark.parametrize("name", ["unknown_name", "difflib", "KeyboardInterrupt", "__doc__", ""])
def test_another_process_names_no_class_but_ours(name: str) -> None:
    there = errors.error_from({"error": name, "message": "hello"})
    assert type(there) is errors.EdgeattnError
    assert str(there) == "hello"
