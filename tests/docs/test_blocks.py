"""Every Python block of the pages runs as it stands, in order, in one empty directory per page.

A block with a title is a file of that name: it is written, and a factory in it is loaded as a MODEL. Files and bundles
that a page takes as given (a recording, a bundle that its commands would have made) are made when a block first names
them; all others must come from the page itself.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.cli import COMMANDS, load_command, main
from edgeattn.cli.settings import read_settings, read_targets
from edgeattn.models import streaming_conformer
from edgeattn.quantize.plan import read_plan
from edgeattn.sources import load_data, load_model
from edgeattn.targets import get_target
from tests.conversions import BUNDLES, speech_conversion
from tests.docs.pages import PAGES, Block, blocks
from tests.docs.test_commands import commands, parse
from tests.once import shared_root

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")
tokenizers: Any = pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")
pytest.importorskip("onnxruntime", reason="bundles are made for it: edgeattn[convert]")

LITERAL = re.compile(r'"([\w./-]+)"')
SAMPLE = Path(streaming_conformer.__file__).parent / "assets" / "sample.wav"
PYTHON_PAGES = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]

CONVERTING = {
    "README.md",
    "generation.md",
    "index.md",
    "sources.md",
    "sentence-encoder.md",
    "streaming.md",
}  # a bundle or more is made

# Blocks that no test can run, by page and first line, with the reason. None today.
NOT_RUN: Mapping[tuple[str, str], str] = {}


# --- what pages take as given -----------------------------------------------------------------------------------------


def copy_recording(to: Path) -> None:
    shutil.copyfile(SAMPLE, to)


def blocks_of_data(to: Path) -> None:
    """The model and the arrays of docs/data.md, which other pages take up."""
    (block,) = [block for block in blocks("data.md") if block.title == "model.py"]
    if to.name == "model.py":
        to.write_text(block.code)
        return
    tokens = np.random.default_rng(0).standard_normal((20, 8, 16)).astype(np.float32)
    np.savez(to, tokens=tokens, target_scores=np.arange(20) % 4)


def write_classifier(directory: Path) -> None:
    """A text classifier with random weights and a tokenizer, as save_pretrained writes it."""
    write_bert(directory, "BertForSequenceClassification", id2label={0: "negative", 1: "positive"})


def write_bert(directory: Path, kind: str, **settings: Any) -> None:
    words = ["[UNK]", "[PAD]", "the", "cat", "film", "best", "plot", "badly"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=256, **sizes, **settings)
    getattr(transformers, kind)(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_writer(directory: Path) -> None:
    """An encoder-decoder with random weights, as save_pretrained writes it."""
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.BartConfig(
        vocab_size=97, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None, init_std=0.5, **sizes,
    )  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(directory)


def write_storyteller(directory: Path) -> None:
    """A causal language model with random weights, as save_pretrained writes it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=97, intermediate_size=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=0.5, **sizes,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


def bundle_of(model: Callable[[Path], None] | None, reference: str, *options: str) -> Callable[[Path], None]:
    """A bundle of a model in float32 for ONNX Runtime, which is the quickest to make; its name is the page's."""

    def make(to: Path) -> None:
        if model is not None:
            model(Path(reference))
        made = ["--target", "cpu", "--backend", "onnxruntime", "--precision", "fp32", "--out", "made", *options]
        assert run_command("convert", reference, *made) == 0
        (bundle,) = Path("made").glob("*.edge")
        to.parent.mkdir(parents=True, exist_ok=True)
        bundle.rename(to)

    return make


def run_command(*arguments: str) -> int:
    """A command in this process and directory, through the entry point that the script has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgeattn", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def write_encoder(directory: Path) -> None:
    write_bert(directory, "BertModel")


GIVEN: Mapping[str, Callable[[Path], None]] = {
    "hello.wav": copy_recording,
    "model.py": blocks_of_data,
    "calib.npz": blocks_of_data,
    "classifier": write_classifier,
    "out/model.cpu.edge": bundle_of(write_encoder, "encoder", "--bucket", "seq=8,16"),
    "text/model.cpu.edge": bundle_of(write_encoder, "encoder", "--bucket", "seq=8,16"),
    "out/writer.cpu.edge": bundle_of(write_writer, "writer"),
    "out/storyteller.cpu.edge": bundle_of(write_storyteller, "storyteller", "--bucket", "seq=16"),
    "out/vit.cpu.edge": bundle_of(None, "vit"),
}
OF_A_PAGE: Mapping[tuple[str, str], Callable[[Path], None]] = {
    ("index.md", "out/model.cpu.edge"): bundle_of(None, "model.onnx"),  # its ONNX file's
}


# --- running a page ---------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory that Python is started in; what is imported from there is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def run_page(page: str, speech: Path) -> dict[str, Any]:
    """Run all blocks of a page in the working directory; the names that they leave behind."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.title:
            write(block)
        if block.language != "python" or (page, block.code.partition("\n")[0]) in NOT_RUN:
            continue
        if block.title:
            if "def model(" in block.code:
                assert load_model(block.title).spec.graphs
            continue
        for literal in LITERAL.findall(block.code):
            prepare(page, literal, speech)
        with contextlib.redirect_stdout(None), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["python"])
            exec(compile(block.code, block.place, "exec"), names)
    return names


def write(block: Block) -> None:
    path = Path(block.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code, encoding="utf-8")


def prepare(page: str, literal: str, speech: Path) -> None:
    """Make what a block takes as given, unless the page made it."""
    path = Path(literal)
    if path.exists():
        return
    if path.name == "streaming-conformer.cpu.edge":
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(speech, path)
    elif (make := OF_A_PAGE.get((page, literal), GIVEN.get(literal))) is not None:
        make(path)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model's bundle."""
    _, out = speech_conversion(shared_root(tmp_path_factory))
    return out / f"streaming-conformer.{BUNDLES['cpu']}"


@pytest.mark.filterwarnings("ignore")  # of torch's exporters, in blocks that a user runs outside of a test
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in CONVERTING else ()) for page in PYTHON_PAGES]
)
def test_the_python_blocks_of_a_page_run_as_written(page: str, empty: Path, speech: Path) -> None:
    names = run_page(page, speech)
    if page == "sources.md":
        assert names["written"] == greedy_of_transformers(names["tokens"], names["FIRST"], names["LAST"])

    if page == "generation.md":
        assert (names["text"], names["best"]) == tuple(
            story_of_transformers(names["prompt"], beams) for beams in (1, 4)
        )
        assert names["drawn"] != names["text"]
        assert names["translated"]


def story_of_transformers(prompt: list[int], beams: int) -> list[int]:
    """The oracle of docs/generation.md; tokens without the one that ends the text."""
    network = transformers.LlamaForCausalLM.from_pretrained("storyteller").eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        (row,) = network.generate(ids, max_new_tokens=20, num_beams=beams, do_sample=False).tolist()
    return [int(token) for token in row[len(prompt) :] if token != network.config.eos_token_id]


def greedy_of_transformers(tokens: np.ndarray, first: int, last: int) -> list[int]:
    """The oracle of the loop in docs/sources.md: the whole sequence again for each token, by transformers."""
    network = transformers.BartForConditionalGeneration.from_pretrained("writer").eval()
    ids, said = torch.from_numpy(tokens), [first]
    for _ in range(40):
        with torch.no_grad():
            logits = network(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=torch.tensor([said]))
        token = int(logits.logits[0, -1].argmax())
        if token == last:
            break
        said.append(token)
    assert len(set(said)) > 3  # words that differ: a loop that lost its states would not write them
    return said[1:]


def test_pages_with_python_are_found() -> None:
    expected = {"README.md", "index.md", "data.md", "generation.md", "sources.md", "streaming.md", "buckets.md"}
    assert expected <= set(PYTHON_PAGES)


def test_a_block_that_is_not_run_is_there_and_has_a_reason() -> None:
    first_lines = {(page, block.code.partition("\n")[0]) for page in PAGES for block in blocks(page)}
    assert set(NOT_RUN) <= first_lines
    assert all(NOT_RUN.values())


def test_toml_blocks_are_read_by_what_they_are_for(empty: Path) -> None:
    """Settings of targets, a plan, and the facts of a target: their readers refuse a word that they do not know."""
    found = {block.place.partition(":")[0]: block.code for page in PAGES for block in blocks(page) if is_toml(block)}
    assert set(found) == {"cli.md", "devices.md", "quantization.md", "targets.md"}
    Path("edgeattn.toml").write_text(found["cli.md"])
    assert set(read_targets()) == {"jetson"}
    settings = read_settings(COMMANDS, lambda name: load_command(name).params)
    assert settings["convert"]["target"] == ["cpu", "jetson"]
    Path("edgeattn.toml").write_text(found["devices.md"])
    assert set(read_targets()) == {"raspberry-pi-5"}
    Path("plan.toml").write_text(found["quantization.md"])
    assert read_plan(Path("plan.toml")).of("encoder.layer.0.attention") == "float"
    Path("my-board.toml").write_text(found["targets.md"])
    assert get_target("my-board.toml").name == "my-board"


def is_toml(block: Block) -> bool:
    return block.language == "toml"


# --- docs/data.md -----------------------------------------------------------------------------------------------------


def test_every_example_of_data_is_read_as_the_page_says(empty: Path, speech: Path) -> None:
    """Each ``convert`` line of docs/data.md: its MODEL is loaded and its ``--data`` read, by the command's words."""
    run_page("data.md", speech)
    write_classifier(Path("classifier"))
    for name in ("hello", "later", "noise", "first"):
        shutil.copyfile(SAMPLE, f"recordings/{name}.wav")
    counts = {}
    for _, words in commands("data.md", "edgeattn"):
        if words[0] != "convert" or "--data" not in words:
            continue
        _, given = parse(words)
        model = load_model(given["model"])
        data = load_data(given["model"], model.spec, given["data"], given["split"], given["samples"], model.assets)
        assert data is not None
        counts[given["data"]] = (len(data.calibration), len(data.evaluation), data.origin)
    assert counts == {
        "calib.npz": (20, 80, "calib.npz/test"),
        "samples.py:samples": (20, 50, "samples.py:samples/test"),
        "reviews.tsv": (2, 4, "reviews.tsv/test"),
        "recordings/": (0, 3, "recordings/test"),  # one recording under four names: none is heard on both sides
    }


def test_the_labels_of_the_examples_are_the_models_own(empty: Path, speech: Path) -> None:
    run_page("data.md", speech)
    model = load_model("model.py")
    for source in ("calib.npz", "samples.py:samples"):
        data: Any = load_data("model.py", model.spec, source, None, 0)
        for sample in (*data.calibration, *data.evaluation):
            assert model.run(sample.inputs)["scores"].argmax() == sample.targets["scores"].item()
