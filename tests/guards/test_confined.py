"""Links of a packed directory carry nothing in from outside, and nothing in it makes a reader wait."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError, EdgeattnError, ModelError
from edgeattn.evaluation.array_reading import load_arrays
from edgeattn.evaluation.speech import read_transcripts
from edgeattn.guards.confined import confined, confined_file, regular_file
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"
SPEC = ModelSpec(
    "net", "generic", (GraphSpec("main", (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),)),)
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_ed25519"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "packed"
    (made / "inner").mkdir(parents=True)
    (made / "real.txt").write_text("words")
    return made


def test_a_link_inside_is_followed(directory: Path) -> None:
    (directory / "inner" / "link.txt").symlink_to("../real.txt")
    assert confined_file(directory / "inner" / "link.txt", directory, ModelError) == (directory / "real.txt").resolve()


@pytest.mark.parametrize("form", ["absolute", "relative", "folder", "chain", "dots"])
def test_a_path_that_leads_out_is_refused(directory: Path, secret: Path, form: str) -> None:
    link = directory / "vocab.txt"
    if form == "absolute":
        link.symlink_to(secret)
    elif form == "relative":
        link.symlink_to(os.path.relpath(secret, directory))
    elif form == "folder":
        (directory / "out").symlink_to(secret.parent)
        link = directory / "out" / secret.name
    elif form == "chain":
        (directory / "inner" / "one").symlink_to(secret)
        link.symlink_to("inner/one")
    else:
        link = directory / "inner" / ".." / ".." / "home" / secret.name
    with pytest.raises(ModelError, match=r"lies outside .* cp -rL"):
        confined_file(link, directory, ModelError)


def test_a_loop_of_links_and_names_that_no_system_has_are_refused(directory: Path) -> None:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    for name in ("a", "x" * 5_000, "nul\0byte", "missing"):
        with pytest.raises(DataError) as raised:
            confined_file(directory / name, directory, DataError)
        assert "\0" not in str(raised.value)
        assert len(str(raised.value)) < 1_000


def test_a_pipe_and_a_device_are_refused_at_once(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    for path in (directory / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="not a regular file"):
            regular_file(path, DataError)


@pytest.mark.parametrize("blobs", ["blobs", "elsewhere", "linked"])
def test_a_snapshot_of_the_hub_reads_its_own_blobs_alone(tmp_path: Path, secret: Path, blobs: str) -> None:
    repository = tmp_path / "hub" / "models--org--net"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    if blobs == "linked":
        (repository / "blobs").symlink_to(secret.parent)
    else:
        (repository / "blobs").mkdir()
        (repository / "blobs" / secret.name).write_text("{}")
    target = f"../../blobs/{secret.name}" if blobs != "elsewhere" else str(secret)
    (snapshot / "config.json").symlink_to(target)
    if blobs == "blobs":
        assert confined(snapshot / "config.json", snapshot, ModelError).read_text() == "{}"
        return
    with pytest.raises(ModelError, match="lies outside"):
        confined(snapshot / "config.json", snapshot, ModelError)


def test_blobs_of_another_directory_are_outside(tmp_path: Path) -> None:
    snapshot = tmp_path / "my-net" / "snapshots" / "1"  # no repository of the hub
    snapshot.mkdir(parents=True)
    (tmp_path / "my-net" / "blobs").mkdir()
    (tmp_path / "my-net" / "blobs" / "a").write_text("")
    (snapshot / "a").symlink_to("../../blobs/a")
    with pytest.raises(ModelError, match="lies outside"):
        confined(snapshot / "a", snapshot, ModelError)


def test_data_that_is_no_file_or_links_away_is_refused(directory: Path, secret: Path) -> None:
    os.mkfifo(directory / "samples.npz")
    with pytest.raises(DataError, match="not a regular file"):
        load_arrays(directory / "samples.npz", SPEC)
    (directory / "transcripts.tsv").symlink_to(secret)
    with pytest.raises(DataError, match="lies outside"):
        read_transcripts(directory)
    (directory / "transcripts.tsv").unlink()
    (directory / "transcripts.tsv").write_text("path\ttext\nnul\0.wav\tone\n" + "x" * 5_000 + "\ttwo\n")
    with pytest.raises(DataError, match=r"transcripts.tsv"):
        read_transcripts(directory)


def test_texts_of_a_directory_stay_inside(directory: Path, secret: Path) -> None:
    pytest.importorskip("torch", reason="sources are read with it: edgeattn[convert]")
    from edgeattn.tasks.tables import read_table

    (directory / "test.tsv").symlink_to(secret)
    with pytest.raises(DataError, match="lies outside"):
        read_table(directory, ("text", "label"))
    os.mkfifo(directory / "pipe.tsv")
    with pytest.raises(DataError, match="not a regular file"):
        read_table(directory / "pipe.tsv", ("text", "label"))


CONFIG: dict[str, Any] = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")
    import transformers

    made = tmp_path_factory.mktemp("bert")
    transformers.BertModel(transformers.BertConfig(**CONFIG)).save_pretrained(made)
    return made


@pytest.mark.parametrize("name", ["vocab.txt", "config.json", "model.safetensors", "tokenizer.json", "pruning.json"])
def test_a_hugging_face_directory_brings_nothing_from_outside(
    bert: Path, tmp_path: Path, secret: Path, name: str
) -> None:
    from edgeattn.sources import load_model

    copy = tmp_path / "bert"
    copy.mkdir()
    for file in bert.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(secret)
    with pytest.raises(ModelError, match=r"lies outside") as raised:
        load_model(str(copy))
    assert SECRET not in str(raised.value)


def test_a_snapshot_of_the_hub_is_a_model(bert: Path, tmp_path: Path) -> None:
    from edgeattn.sources import load_model

    repository = tmp_path / "models--org--net"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (bert / "vocab.txt").write_text("[PAD]\n")
    for number, file in enumerate(bert.iterdir()):
        (repository / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    model = load_model(str(snapshot))
    assert model.assets["vocab.txt"].read_text() == "[PAD]\n"


def test_a_pruned_directory_stays_inside(tmp_path: Path, directory: Path, secret: Path) -> None:
    pytest.importorskip("torch", reason="pruned models are read with it: edgeattn[convert]")
    from edgeattn.pruning import PruningRecord, check_weights, read_saved

    (directory / "pruning.json").symlink_to(secret)
    with pytest.raises(ModelError, match="lies outside"):
        read_saved(directory)
    (directory / "weights.safetensors").symlink_to(secret)
    with pytest.raises(ModelError, match="lies outside"):
        check_weights(directory / "weights.safetensors", PruningRecord("net", "", "", (), {}))


def test_example_inputs_beside_an_onnx_file_stay_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="ONNX is read with it: edgeattn[convert]")
    from edgeattn.sources.onnx.example import side_file

    (tmp_path / "net").mkdir()
    np.savez(tmp_path / "away.npz", x=np.zeros(1))
    (tmp_path / "net" / "net.npz").symlink_to("../away.npz")
    with pytest.raises(ModelError, match=r"links out of the model's folder"):
        side_file(tmp_path / "net" / "net.onnx")


def test_recordings_of_a_corpus_stay_inside(tmp_path: Path, secret: Path) -> None:
    pytest.importorskip("torch", reason="the package of the built-in loads it: edgeattn[convert]")
    from edgeattn.models.streaming_conformer.voices import read_folder

    (tmp_path / "fsdd").mkdir()
    for name in ("../home/id_ed25519", str(secret), "link.wav"):
        (tmp_path / "fsdd" / "transcripts.tsv").write_text(f"path\ttext\tspeaker\tsplit\n{name}\tone\tann\ttrain\n")
        if not (tmp_path / "fsdd" / "link.wav").is_symlink():
            (tmp_path / "fsdd" / "link.wav").symlink_to(secret)
        with pytest.raises(EdgeattnError, match=r"transcripts.tsv:2: .*lies outside"):
            read_folder(tmp_path / "fsdd", "fsdd")
