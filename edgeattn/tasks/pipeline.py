"""Raw input in, answer out: a model with its pre- and post-processing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeattn.errors import InputError
from edgeattn.tasks.registry import TASKS, restored
from edgeattn.tasks.task import Runs, Task


def task_of_manifest(values: Mapping[str, Any] | None) -> Task:
    """The task of a bundle.

    Args:
        values: as its manifest has it.

    Raises:
        InputError: for a bundle that names none, or one that this version does not know.
    """
    if values is None:
        raise InputError(
            "this bundle does not say what its model is for: convert it again with --task, one of "
            f"{', '.join(TASKS)}; or run it by the names of its inputs"
        )
    return restored(values)


class Pipeline:
    """A loaded model that is asked in the task's own terms.

    Args:
        runner: a session.
        task: as its manifest has it; None for a model without.
        assets: that travel with the model.

    Raises:
        InputError: for a model whose bundle names no task, or one that this version does not know.
    """

    def __init__(self, runner: Runs, task: Mapping[str, Any] | None, assets: Mapping[str, Path]) -> None:
        self.task = task_of_manifest(task)
        self._runner = runner
        self._encode = self.task.encoder(runner.spec, assets)

    def __call__(self, given: Any) -> Any:
        """The answer to a raw input, with names in place of numbers: what JSON can say.

        Args:
            given: what the task takes: a text, pixels, samples; see docs/tasks.md.

        Raises:
            DataError: for what the task cannot take.
        """
        return self.task.described(self.answer(given))

    def answer(self, given: Any) -> Any:
        """The answer as metrics compare it: scores, indices, boxes."""
        return self.task.respond(self._runner, self._encode(given))

    def read(self, text: str) -> Any:
        """The raw input that a command line's argument stands for: the text itself, or what a file of that name holds.

        Raises:
            DataError: for what the task cannot take.
        """
        return self.task.parsed(text)
