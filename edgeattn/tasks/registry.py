"""All tasks, and which of them a model is for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from edgeattn.errors import DataError, InputError, unknown_name
from edgeattn.spec import from_json, to_json
from edgeattn.tasks.anything import Anything
from edgeattn.tasks.audio_classification import AudioClassification, KeywordSpotting
from edgeattn.tasks.detection import Detection
from edgeattn.tasks.forecasting import Forecasting, Regression
from edgeattn.tasks.image_classification import ImageClassification
from edgeattn.tasks.language_model import LanguageModel
from edgeattn.tasks.link_prediction import LinkPrediction
from edgeattn.tasks.policy import Policy
from edgeattn.tasks.question_answering import QuestionAnswering
from edgeattn.tasks.recommendation import Recommendation
from edgeattn.tasks.retrieval import Retrieval
from edgeattn.tasks.segmentation import Segmentation
from edgeattn.tasks.sentence_similarity import SentenceSimilarity
from edgeattn.tasks.speaker_verification import SpeakerVerification
from edgeattn.tasks.speech_enhancement import SpeechEnhancement
from edgeattn.tasks.speech_recognition import SpeechRecognition
from edgeattn.tasks.task import Described, Task
from edgeattn.tasks.text_classification import TextClassification
from edgeattn.tasks.text_generation import Dialogue, Summarization, Translation
from edgeattn.tasks.token_classification import TokenClassification

TASKS: Mapping[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        Translation,
        Summarization,
        Dialogue,
        LanguageModel,
        SentenceSimilarity,
        Retrieval,
        ImageClassification,
        Segmentation,
        Detection,
        KeywordSpotting,
        AudioClassification,
        SpeechRecognition,
        SpeakerVerification,
        SpeechEnhancement,
        Recommendation,
        LinkPrediction,
        Forecasting,
        Regression,
        Policy,
        Anything,
    )
}
"""Name -> class, in the order in which they are listed."""


def task_named(name: str) -> type[Task]:
    """The task of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in TASKS:
        raise InputError(unknown_name("task", name, TASKS))
    return TASKS[name]


def recognised(model: Described) -> Task | None:
    """The task that a model says it is for, fitted to it; None for one that says nothing, or takes something else."""
    for kind in TASKS.values():
        if model.spec.task in kind.model_tasks:
            with contextlib.suppress(DataError):
                return kind.fitted(model)
    return None


def stored(task: Task) -> dict[str, Any]:
    """A fitted task as a manifest has it."""
    return {"name": task.name, "settings": to_json(task)}


def restored(values: Mapping[str, Any]) -> Task:
    """The task of :func:`stored`, held to every rule of its settings.

    Raises:
        InputError: for what is none.
    """
    name, settings = values.get("name"), values.get("settings")
    if not isinstance(name, str) or set(values) - {"name", "settings"}:
        raise InputError(f"task: expected a name and settings, got {', '.join(map(str, values)):.200}")
    return from_json(task_named(name), settings, f"task.{name}")
