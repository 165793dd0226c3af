"""What a model is for: its form of data, pre- and post-processing, its metrics and what an answer looks like.

numpy alone, as a device runs it. A new task is one file here and one line in :data:`~edgeattn.tasks.registry.TASKS`.
"""

from edgeattn.tasks.metric import Metric
from edgeattn.tasks.pipeline import Pipeline, task_of_manifest
from edgeattn.tasks.registry import TASKS, recognised, restored, stored, task_named
from edgeattn.tasks.task import Described, Encoded, Sample, Task

__all__ = [
    "TASKS",
    "Described",
    "Encoded",
    "Metric",
    "Pipeline",
    "Sample",
    "Task",
    "anything",
    "labels",
    "metric",
    "recognised",
    "restored",
    "stored",
    "tables",
    "tagged",
    "task",
    "task_named",
    "task_of_manifest",
    "text_classification",
    "texts",
]
