"""Encoder-decoders of Hugging Face directories, token by token on an engine: logits of the whole model at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.runtimes import open_session
from tests.acceptance.cells import Loaded
from tests.architectures import named

pytest.importorskip("transformers", reason="the models are classes of transformers")

pytestmark = pytest.mark.slow
TOKENS = 7


@pytest.mark.parametrize("name", ["T5", "BART", "Whisper"])
def test_an_encoder_and_decoder_steps_give_what_the_source_gives_at_once(name: str, tmp_path: Path) -> None:
    loaded = Loaded(named(name), "directory", tmp_path)
    model = loaded.model
    encoder, step = (graph.name for graph in model.spec.graphs)
    read = model.example[encoder]
    tokens = np.random.default_rng(0).integers(3, 90, (1, TOKENS))
    module, _ = named(name).build()
    with torch.inference_mode():
        given = {key: torch.from_numpy(array) for key, array in {**read, "decoder_input_ids": tokens}.items()}
        expected = module(**given).logits.numpy()
    artifact = loaded.artifact("onnxruntime", "fp32")
    taken = {tensor.name for tensor in model.spec.graph(step).inputs}
    with open_session("onnxruntime", artifact.models, model.spec, threads=1) as session:
        encoded = session.run(read, encoder)
        fixed = {key: array for key, array in {**read, **encoded}.items() if key in taken}
        states = model.spec.graph(step).initial_states()
        logits = []
        for place in range(TOKENS):
            now = {"input_ids": tokens[:, place : place + 1], "position": np.array([place])}
            result = session.run({**fixed, **states, **now}, step)
            states = {state.input: result[state.output] for state in model.spec.graph(step).states}
            logits.append(result["logits"][:, -1])
    np.testing.assert_allclose(np.stack(logits, 1), expected, atol=1e-4)
