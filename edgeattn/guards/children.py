"""Programs that we start end with us, however we end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

INTERPRETER = sys.executable  # of this process, whatever its programs are told to take for theirs later

# In the child, before it becomes the program: the kernel kills it when the thread that started it is gone (prctl(2),
# PR_SET_PDEATHSIG). It may be gone already. A function between fork and exec (preexec_fn) is not safe beside threads.
BIND = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
os._exit(1)
"""


def bound(command: Sequence[str]) -> list[str]:
    """A command whose process is killed when ours ends, SIGKILL included; where the kernel is not Linux, as it was.

    It must be started by a thread that lives as long as the program is wanted.

    Raises:
        FileNotFoundError: if there is no such program, as starting it would.
    """
    if sys.platform != "linux":
        return list(command)
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(2, os.strerror(2), command[0])
    return [INTERPRETER, "-I", "-S", "-c", BIND, str(os.getpid()), program, *command[1:]]
