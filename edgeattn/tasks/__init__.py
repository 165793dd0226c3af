"""What a model is for: its form of data, pre- and post-processing, its metrics and what an answer looks like.

numpy alone, as a device runs it. A new task is one file here and one line in :data:`TASKS`.
"""

from edgeattn.tasks.metric import Metric

__all__ = ["Metric"]
