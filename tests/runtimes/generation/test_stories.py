"""Trained weights: a small Llama tells its story on every engine as transformers tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeattn.guards.silence import silenced
from edgeattn.model import Artifact, Reference
from edgeattn.runtimes import GenerateOptions, open_session
from edgeattn.sources import load_model
from edgeattn.sources.sizes import with_buckets
from tests.stories260k import BEGIN, stories, text_of, write_directory

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")

pytestmark = pytest.mark.slow

LENGTH = 200  # tokens
BEGINNING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = stories()
    with silenced():
        return write_directory(folder, tmp_path_factory.mktemp("stories") / "stories260k")


@pytest.fixture(scope="module")
def story(directory: Path) -> list[int]:
    """Greedy, by transformers."""
    with silenced(), torch.inference_mode():
        module = transformers.LlamaForCausalLM.from_pretrained(directory).eval()
        (row,) = module.generate(torch.tensor([[BEGIN]]), do_sample=False, max_new_tokens=LENGTH).tolist()
    return [int(token) for token in row[1:]]


def test_the_directory_tells_what_llama2_c_tells(story: list[int]) -> None:
    """The beginning of the story is the one that its author publishes, token by token the most likely."""
    assert text_of(stories(), story).startswith(BEGINNING)


@pytest.mark.parametrize("engine", ["source", "onnxruntime", "openvino", "litert"])
def test_every_engine_tells_the_same_story(directory: Path, story: list[int], engine: str, tmp_path: Path) -> None:
    for module in ("onnxscript", "onnxruntime", "openvino", "litert_torch"):
        pytest.importorskip(module, reason="the conversions need edgeattn[convert,openvino,tflite]")
    from edgeattn.converters.litert import to_tflite
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.converters.openvino import to_openvino

    model = with_buckets(load_model(str(directory)), {"seq": (16,)})
    assert [graph.name for graph in model.spec.graphs] == ["prefill_16", "step"]
    options = GenerateOptions(max_new_tokens=LENGTH)
    rest = GenerateOptions(max_new_tokens=LENGTH - 12)
    if engine == "source":
        assert list(Reference(model).generate([BEGIN], options)) == story
        return
    files = to_tflite(model, tmp_path, "fp32").models if engine == "litert" else export_onnx(model, tmp_path)
    if engine == "openvino":
        (tmp_path / "ir").mkdir()
        made: Artifact = to_openvino(files, tmp_path / "ir", "fp32")
        files = made.models
    with open_session(engine, files, model.spec) as session:
        session.assets = model.assets
        assert list(session.generate([BEGIN], options)) == story
        assert list(session.generate([BEGIN, *story[:12]], rest)) == story[12:]  # its beginning as a prompt
