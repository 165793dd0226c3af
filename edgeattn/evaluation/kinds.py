"""The kinds of data that there are."""

from __future__ import annotations

from edgeattn.evaluation.arrays import ArrayData
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.speech import SpeechData
from edgeattn.evaluation.task_data import TaskData

KINDS: dict[str, type[Data]] = {kind.kind: kind for kind in (SpeechData, ArrayData, TaskData)}
"""Name -> class. A device finds here what the samples that it was sent are."""
