"""The built-in streaming speech model: ten digits and ten commands as connected words.

A :class:`~edgeattn.models.ReferenceModel`: importing this loads neither torch nor numpy, since the command line asks
for names and options before it needs the model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgeattn.errors import DataError, MissingExtraError, load_extra
from edgeattn.models.streaming_conformer.options import Options
from edgeattn.models.streaming_conformer.vocabulary import BLANK_ID, COMMANDS, DIGITS, TOKENS, UNKNOWN
from edgeattn.models.training import OnProgress

if TYPE_CHECKING:
    import torch

    from edgeattn.evaluation.speech import SpeechData, Utterance
    from edgeattn.model import EdgeModel
    from edgeattn.models.streaming_conformer.model import StreamingConformer
    from edgeattn.models.streaming_conformer.recipe import TrainResult
    from edgeattn.models.streaming_conformer.step import StreamingStep
    from edgeattn.spec import ModelSpec

__all__ = [
    "NAME",
    "Options",
    "augment",
    "build",
    "data",
    "edge_model",
    "measure",
    "model",
    "model_spec",
    "sample",
    "stage",
    "train",
    "utterances",
    "vocabulary",
    "voices",
    "weights",
    "weights_path",
]

NAME = "streaming-conformer"
GRAPH = "step"
FEATURES, BIAS, SCORES = "feats", "att_bias", "log_probs"
ASSETS = "edgeattn_streaming_conformer"  # the folder that assets/pyproject.toml installs
PER_SPEAKER = {"fsdd": 20, "speech_commands": 3}  # evaluation utterances; fsdd has 5 speakers, the dev split 53


def asset(name: str) -> Path:
    """A file that comes with the model: in a clone from the folder beside this file, else from its distribution.

    Raises:
        MissingExtraError: if that distribution is not installed; a device has no use for it.
    """
    folders = [Path(__file__).with_name("assets")]
    installed = find_spec(ASSETS)
    if installed is not None:
        folders += map(Path, installed.submodule_search_locations or ())
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise MissingExtraError(
        f"the weights and the sample of {NAME} are a package of their own: pip install 'edgeattn[{NAME}]'"
    )


def weights_path() -> Path:
    """Where the weights that ship are; raises as :func:`asset`."""
    return asset("weights.safetensors")


def build(weights: Path | None = None) -> EdgeModel:
    """The streaming model as edgeattn converts it.

    Args:
        weights: a file that training wrote; None for the weights that ship.

    Raises:
        InputError: the file is missing, damaged, of another model or holds NaN.
        MissingExtraError: torch, safetensors or the weights that ship are not installed.
    """
    load_extra("torch", "convert")
    load_extra("safetensors", "convert")
    from edgeattn.models.streaming_conformer.weights import load_model

    path = weights_path() if weights is None else weights
    return edge_model(load_model(path), hashlib.sha256(path.read_bytes()).hexdigest())


def edge_model(model: StreamingConformer, source_sha256: str) -> EdgeModel:
    """The streaming step of a model, pruned or not, with its spec and an example: noise after a full cache."""
    import numpy as np

    from edgeattn.model import EdgeModel
    from edgeattn.models.streaming_conformer.step import StreamingStep

    step = StreamingStep(model).eval()
    spec = model_spec(step)
    rng = np.random.default_rng(0)
    graph = spec.graphs[0]
    example = {tensor.name: rng.standard_normal(tensor.shape).astype(np.float32) for tensor in graph.all_inputs}
    example[FEATURES] = 3.0 * example[FEATURES] + step.mean.numpy()
    example[BIAS][:] = 0.0
    size = sum(parameter.numel() * 4 for parameter in step.parameters())

    def rebuild(network: torch.nn.Module) -> EdgeModel:
        return edge_model(cast("StreamingConformer", network), source_sha256)

    return EdgeModel(spec, {GRAPH: step}, {GRAPH: example}, source_sha256, size, network=model, rebuild=rebuild)


def model_spec(step: StreamingStep) -> ModelSpec:
    """Names, shapes, states, front end and decoding of a streaming step."""
    from edgeattn.models.streaming_conformer.utterances import FBANK
    from edgeattn.spec import CtcGreedy, GraphSpec, ModelSpec, StateSpec, StreamSpec, TensorSpec

    config = step.config
    graph = GraphSpec(
        GRAPH,
        (
            TensorSpec(FEATURES, "float32", (1, config.window, config.num_mel)),
            TensorSpec(BIAS, "float32", (1, 1, 1, config.left + config.chunk)),
        ),
        (TensorSpec(SCORES, "float32", (1, config.chunk, config.vocabulary)),),
        tuple(StateSpec(name, f"next_{name}", shape) for name, shape in step.state_shapes.items()),
    )
    decoder = CtcGreedy(TOKENS, BLANK_ID, (UNKNOWN,))
    stream = StreamSpec(
        frontend=FBANK,
        decoder=decoder,
        window=config.window,
        shift=config.shift,
        chunk=config.chunk,
        left=config.left,
        features=FEATURES,
        bias=BIAS,
        scores=SCORES,
    )
    return ModelSpec(NAME, "speech-recognition", (graph,), stream)


def data(directory: Path | None = None, split: str | None = None, limit: int = 0) -> SpeechData:
    """Connected utterances to calibrate and measure on.

    Args:
        directory: holds ``fsdd/`` and/or ``speech_commands/``; None for the small synthesised sample that ships.
        split: what to measure on, "test" or "dev"; by default fsdd's test and speech_commands' dev split. The train
            splits calibrate, never what is measured.
        limit: at most this many utterances of each kind, drawn evenly over the speakers; 0 for all.

    Raises:
        DataError: no utterance can be made of the data.
        InputError: a line of a transcripts.tsv is wrong.
        MissingExtraError: the sample that ships is not installed.
    """
    if directory is None:
        if split is not None:
            raise DataError(f"the sample that ships has no split {split!r}: leave --split out, or give --data")
        return _drawn(sample(), limit)
    from edgeattn.evaluation.speech import SpeechData
    from edgeattn.models.streaming_conformer.utterances import connected_utterances
    from edgeattn.models.streaming_conformer.voices import NOISE, read_corpus

    clips = read_corpus(directory)
    measured = ("test", "dev") if split is None else (split,)
    calibration: list[Utterance] = []
    evaluation: list[Utterance] = []
    for source, vocabulary in (("fsdd", DIGITS), ("speech_commands", COMMANDS)):
        own = [clip for clip in clips if clip.source == source or clip.word == NOISE]
        trained = [clip for clip in own if clip.split == "train"]
        unseen = [clip for clip in own if clip.split in measured]
        calibration += connected_utterances(trained, vocabulary, PER_SPEAKER[source])
        evaluation += connected_utterances(unseen, vocabulary, PER_SPEAKER[source])
    if not evaluation or (split == "train"):
        raise DataError(f"{directory}: nothing to measure on in split {split or 'test or dev'}; valid: test, dev")
    # The weights that ship heard every speaker of these corpora; figures on unseen ones stand in the model card.
    origin = f"{directory.name}: connected words, noise 15-30 dB, speakers heard in training"
    return _drawn(SpeechData(origin, tuple(calibration), tuple(evaluation)), limit)


def _drawn(speech: SpeechData, limit: int) -> SpeechData:
    """At most ``limit`` utterances of each kind, each speaker in its share; all of them, as they are, for 0."""
    from edgeattn.evaluation.data import drawn

    def some(utterances: tuple[Utterance, ...]) -> tuple[Utterance, ...]:
        if not limit or len(utterances) <= limit:
            return utterances
        return tuple(utterances[i] for i in drawn([u.speaker for u in utterances])[:limit])

    return replace(speech, calibration=some(speech.calibration), evaluation=some(speech.evaluation))


def sample() -> SpeechData:
    """The sample that ships: words spoken by synthesised voices, half to calibrate on, half to measure on."""
    from edgeattn.audio import read_audio
    from edgeattn.evaluation.speech import SpeechData, Utterance

    index = json.loads(asset("sample.json").read_text(encoding="utf-8"))
    samples = read_audio(asset("sample.wav"), index["sample_rate"])
    utterances = tuple(
        Utterance(samples[item["start"] : item["end"]], tuple(item["text"].split()), item["speaker"])
        for item in index["utterances"]
    )
    return SpeechData("synthesised sample, voices heard in training", utterances[::2], utterances[1::2])


def train(data: Path, out: Path, options: Options, progress: OnProgress) -> TrainResult:
    """As :func:`edgeattn.models.streaming_conformer.recipe.train`."""
    from edgeattn.models.streaming_conformer import recipe

    return recipe.train(data, out, options, progress)
