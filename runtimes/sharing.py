"""What threads and processes may do with one session: its steps take turns, and it ends once, for all of them.

An engine's objects are read and written by native code that knows nothing of Python's threads, and a process that was
forked has none of the threads that an engine computes with. So every use passes a :class:`Turn`, which costs a fraction
of a microsecond and allocates nothing.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import final

from edgeattn.errors import InputError

CLOSED = "this session is closed; load the bundle again, and close it when its last step and stream are done"
FORKED = (
    "this session was loaded before this process was forked, and its engine's threads are not in it; load the bundle "
    'in the process that uses it, or start processes with multiprocessing.get_context("spawn")'
)


@final
class Gate:
    """Whether a session may be used: until it is closed, and only in the process that loaded it.

    Attributes:
        refusal: why it may not, None as long as it may.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None

    def shut(self) -> bool:
        """Whether it is closed or left behind, as any thread may have made it meanwhile."""
        return self.refusal is not None

    def check(self) -> None:
        """Go through.

        Raises:
            InputError: if the session is closed, or was loaded before a fork.
        """
        if self.refusal is not None:
            raise InputError(self.refusal)


@final
class Turn:
    """The right to use the buffers of one step, for one thread at a time.

    A second thread is refused and not made to wait: buffers are filled before a run, so the two would compute with each
    other's inputs whoever goes first.
    """

    __slots__ = ("_lock", "gate")

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.gate.check()
            raise InputError(
                "this step is being run by another thread; give each thread a step or a stream of its own: "
                "session.step(), session.stream()"
            )
        if self.gate.refusal is not None:
            self._lock.release()
            self.gate.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def last(self) -> None:
        """Wait for the turn that is running; there is none after it."""
        self._lock.acquire()
