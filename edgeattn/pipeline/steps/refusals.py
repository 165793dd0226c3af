"""What one target cannot take stops no other: its error becomes a row of the report, and the others go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

from edgeattn.errors import EdgeattnError, error_facts
from edgeattn.results.gates import Failure
from edgeattn.results.grid import ABSENT
from edgeattn.results.report import Precision, Result, with_gates
from edgeattn.results.verdicts import failed_rows
from edgeattn.targets import Target


def unserved_row(target: Target, backend: str | None, precision: Precision) -> Result:
    """The row of a target that got nothing, without the reason.

    Args:
        backend: the engine that was asked for, None for the target's first.
    """
    return Result(target=target.name, device=target.title, backend=backend or target.backends[0], precision=precision)


@final
class Refusals:
    """The errors of a command's targets. Of one target alone they are raised: there is nothing to go on with.

    Args:
        targets: of the command, in its order.
        backend: the engine that was asked for, None for each target's first.
        asked: the precision that was.
    """

    def __init__(self, targets: Sequence[Target], backend: str | None, asked: str) -> None:
        self._targets = tuple(targets)
        self._backend, self._asked = backend, asked
        self._rows: dict[str, Result] = {}

    @contextlib.contextmanager
    def within(self, target: Target, stage: str, kind: type[EdgeattnError] = EdgeattnError) -> Iterator[None]:
        """A block for one target that ends with its error, if there is one.

        Args:
            stage: what was being done: the gate that the row fails.
            kind: of errors that are this target's alone; others are raised.
        """
        try:
            yield
        except kind as error:
            if len(self._targets) == 1:
                raise
            row = unserved_row(target, self._backend, Precision(asked=self._asked, shipped=ABSENT))
            failure = Failure(
                stage, "a result", str(error).removeprefix(f"{target.name}: ")
            )  # the row says whose it is
            self._rows[target.name] = with_gates(replace(row, error=error_facts(error)), failed_rows([failure]))

    def __contains__(self, target: Target) -> bool:
        return target.name in self._rows

    def left(self) -> tuple[Target, ...]:
        """Targets that nothing has stopped so far."""
        return tuple(target for target in self._targets if target not in self)

    def rows(
        self, results: Iterable[Result], preflight: Mapping[str, tuple[Mapping[str, Any], ...]] | None = None
    ) -> tuple[Result, ...]:
        """One row per target, in the command's order.

        Args:
            results: of those that were served.
            preflight: target -> what was foreseen, for the rows of the others.
        """
        foreseen = preflight or {}
        refused = {name: replace(row, preflight=foreseen.get(name, ())) for name, row in self._rows.items()}
        every = refused | {result.target: result for result in results}
        return tuple(every[target.name] for target in self._targets if target.name in every)
