"""``python -m edgeattn.jobs.answers BUNDLE PARCEL REQUEST_JSON``: the answers of a bundle's task to inputs.

The inputs were encoded where the request comes from and lie in the parcel (:mod:`edgeattn.jobs.parcel`), so that a
device needs neither a tokenizer nor a decoder of images. The request: ``backend`` (null for the bundle's own) and
``threads``. One line of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.errors import EdgeattnError, error_facts
from edgeattn.evaluation.task_data import TaskData
from edgeattn.jobs.parcel import unpacked
from edgeattn.runtimes import load
from edgeattn.spec import to_json


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What an engine answered.

    Attributes:
        answers: as people and programs are told them, one per input.
        lines: the same in one line each.
    """

    backend: str
    engine_version: str
    answers: tuple[Any, ...]
    lines: tuple[str, ...]


def answer(path: Path | str, parcel: Path, backend: str | None, threads: int) -> Answers:
    """The answers to all samples of a parcel, one at a time.

    Raises:
        EdgeattnError: if the bundle or an input cannot be used.
    """
    with load(path, backend, threads) as session, unpacked(parcel) as opened:
        assert isinstance(opened.data, TaskData), "inputs are a task's samples"
        task = opened.data.task
        found = [task.respond(session, sample.encoded) for sample in opened.samples]
        return Answers(
            backend=session.backend,
            engine_version=session.engine_version,
            answers=tuple(task.described(one) for one in found),
            lines=tuple(task.line(one) for one in found),
        )


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    path, parcel, request = arguments
    asked: dict[str, Any] = json.loads(request)
    try:
        told: dict[str, Any] = {"answers": to_json(answer(path, Path(parcel), asked["backend"], asked["threads"]))}
    except EdgeattnError as error:
        told = {**error_facts(error)}
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
