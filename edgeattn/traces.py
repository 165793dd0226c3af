"""What the libraries that we load would leave in a user's home and temporary directory, and how each is kept from it.

:func:`edgeattn.errors.load_extra` asks here before it imports anything, so that no library is loaded without; a test
runs every command and every engine in an empty home and looks at what is there afterwards.

    ONNX Runtime    from 1.24 on its import writes a device id and a database of events into the cache and a session
                    file into TMPDIR, and sends them; ``disable_telemetry_events()`` comes too late for that.
                    The variable is read once, at the import (tried with 1.31; "" and "0" count as unset).
    OpenVINO, NNCF  report to Google Analytics at the import, where there is no consent file in the home directory.
    torch           makes TMPDIR/torchinductor_USER when torch.export is first used, and puts nothing into it.
    matplotlib      keeps a list of fonts and a directory for settings: see :mod:`edgeattn.results.pictures`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ORT_VARIABLE = "ORT_DISABLE_TELEMETRY"


def leave_none(module: str) -> None:
    """To be called before a library is imported; cheap when called again.

    Args:
        module: dotted name of what is about to be imported. What others import on the way is provided for as well.
    """
    os.environ[ORT_VARIABLE] = "1"  # for every library: nncf, onnx_ir and torch import ONNX Runtime themselves
    package = module.partition(".")[0]
    if package in QUIET:
        QUIET[package]()


def _decline() -> None:
    """Declining on disk would write the consent file; answering for this process leaves the user's choice alone."""
    try:
        from openvino_telemetry.main import ConsentCheckResult, OptInChecker
    except ImportError:
        return
    OptInChecker.check = lambda *_, **__: ConsentCheckResult.DECLINED


@functools.cache
def _watch_inductor() -> None:
    atexit.register(remove_inductor)


def remove_inductor() -> None:
    """Remove torch's directory, if it is empty: what a user's own torch.compile put there stays.

    Named as torch names it (torch/_inductor/runtime/cache_dir_utils.py), for a process of ours may have made it.
    """
    with contextlib.suppress(Exception):  # we are leaving, and the name is not ours
        import getpass
        import tempfile  # both here: a device imports this module and needs neither

        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        Path(tempfile.gettempdir(), f"torchinductor_{user}").rmdir()


QUIET: Mapping[str, Callable[[], None]] = {
    "openvino": _decline,
    "nncf": _decline,
    "torch": _watch_inductor,
    "litert_torch": _watch_inductor,
    "transformers": _watch_inductor,
}
