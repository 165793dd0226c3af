"""Every error that edgeattn raises on purpose.

    EdgeattnError                 exit 2 unless said otherwise
    |-- InputError                what the user gave does not fit
    |   |-- ModelError            a MODEL reference, its factory, weights or outputs
    |   |-- DataError             calibration or evaluation data
    |   |-- AudioError            a recording or samples
    |   |-- BundleError           a bundle that is damaged, hostile or from the future
    |   `-- MissingExtraError     an optional dependency is not installed; the message holds the pip command
    |-- OutputError               the result cannot be written (exists, not writable, disk full)
    |-- DeviceError               exit 3: device unreachable or lost
    `-- UnsupportedError          exit 4: the model or precision is not supported on that target
        `-- ConversionError       exit 4: a converter failed; names the node and the module path where known

Exits 1 and 5 are no exceptions: a failed gate, and one that was asked for and could not be judged, are results
(``Report.failed``, ``Report.unjudged``).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType

from edgeattn.printable import excerpt, one_line
from edgeattn.traces import leave_none

LONGEST_NAME = 256  # characters that a near miss is looked for in


class EdgeattnError(Exception):
    """Base of every deliberate error. The message says what was expected, what came, and what to do.

    What it quotes is others' text: as a string it is one printable line of at most 3,800 characters.
    """

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(EdgeattnError):
    """What the user gave does not fit."""


class ModelError(InputError):
    """A MODEL reference, its factory, its weights or its outputs are not usable."""


class DataError(InputError):
    """Calibration or evaluation data is not in the form that the task needs."""


class AudioError(InputError):
    """A recording, or samples pushed into a stream, cannot be used."""


class BundleError(InputError):
    """A bundle is damaged, hostile, incomplete or written by a newer edgeattn."""


class MissingExtraError(InputError):
    """An optional dependency is not installed."""


class OutputError(EdgeattnError):
    """The result cannot be written."""


class DeviceError(EdgeattnError):
    """A device cannot be reached, or was lost."""

    exit_code = 3


class UnsupportedError(EdgeattnError):
    """The model or the precision is not supported on that target."""

    exit_code = 4


class ConversionError(UnsupportedError):
    """A converter failed on this model."""


def error_facts(error: EdgeattnError) -> dict[str, str]:
    """An error as plain JSON, for another process; see :func:`error_from`."""
    return {"error": type(error).__name__, "message": str(error)}


def error_from(facts: Mapping[str, object], where: str = "") -> EdgeattnError:
    """The error that another process told; one of a class that is not ours is an :class:`EdgeattnError`.

    Args:
        where: it was raised, in front of the message.
    """
    named = globals().get(str(facts["error"]))
    kind = named if isinstance(named, type) and issubclass(named, EdgeattnError) else EdgeattnError
    message = str(facts.get("message", "it gave no reason"))
    return kind(f"{where}: {message}" if where else message)


def exit_code_of(facts: Mapping[str, str]) -> int:
    """The exit code of an error in plain JSON; see :func:`error_facts`."""
    return error_from(facts).exit_code


def load_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency inside the function that needs it; it leaves nothing in the user's home.

    Args:
        module: dotted name, for example ``"openvino"``.
        extra: the extra of edgeattn that installs it.

    Raises:
        MissingExtraError: if the package is not installed. A package that is installed but broken raises its own
            ImportError unchanged: hiding it would send the user to reinstall what is there.
    """
    leave_none(module)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(f"{module} is needed here: pip install 'edgeattn[{extra}]'") from error


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """The sentence for a name that is not known: a near miss is suggested and the valid ones are listed."""
    names = sorted(valid)
    near = difflib.get_close_matches(name[:LONGEST_NAME], names, n=1)
    hint = f", did you mean {excerpt(near[0])}?" if near else "."
    return f"unknown {kind} {excerpt(name)}{hint} Valid: {', '.join(names)}"
