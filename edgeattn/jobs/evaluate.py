"""``python -m edgeattn.jobs.evaluate BUNDLE PARCEL REQUEST_JSON``: parity and metric, as a line of JSON on stdout.

For a device: the source's recorded steps and the samples come in the parcel (:mod:`edgeattn.jobs.parcel`), the
outputs are computed here. The request: ``backend`` (null for the bundle's own) and ``threads``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.errors import EdgeattnError, error_facts
from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.parity import Parity
from edgeattn.evaluation.probing import Deviation, deviations
from edgeattn.evaluation.replay import replay
from edgeattn.jobs.parcel import Parcel, unpacked
from edgeattn.runtimes import Session, load
from edgeattn.spec import to_json


@dataclass(frozen=True)
class Evaluation:
    """Parity by graph, empty without recorded steps; the metric, None without samples; what probes found."""

    parities: Mapping[str, Parity]
    score: Score | None
    deviations: tuple[Deviation, ...] = ()


def evaluate(session: Session, parcel: Parcel) -> Evaluation:
    """Replay the recorded steps and measure the metric.

    Raises:
        DataError: as :meth:`edgeattn.evaluation.data.Data.score`.
    """
    parities = {
        graph: replay(kept.records, session.step(graph), parcel.reference, kept.carried)
        for graph, kept in parcel.steps.items()
    }
    score = None if parcel.data is None else parcel.data.score(session, parcel.samples, lambda: None)
    return Evaluation(parities, score, tuple(deviations(session, parcel.probes)))


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    path, parcel, request = arguments
    asked: dict[str, Any] = json.loads(request)
    try:
        with load(path, asked["backend"], asked["threads"]) as session, unpacked(Path(parcel)) as opened:
            answer: dict[str, Any] = {"evaluated": to_json(evaluate(session, opened))}
    except EdgeattnError as error:
        answer = {**error_facts(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
