"""One generator per kind of input: from a random generator and a folder to a call that must end well."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks import bases
from tests.attacks.models import attacked_model
from tests.attacks.values import changed, spoiled, texts, to_text
from tests.attacks.zips import attacked_npy, attacked_zip, packed

ZEROS = b"0" * 64
SEAL = "manifest_sha256"


@dataclass(frozen=True)
class Attack:
    """What is to be done in the folder: a command line, or a call as a command makes it.

    Attributes:
        device: a file for the fake device, which stands at the end of every link meanwhile.
    """

    words: tuple[str, ...] = ()
    call: Callable[[], object] | None = None
    device: Path | None = None


def maybe_json(rng: random.Random, *words: str) -> Attack:
    """A command, half of the time with --json."""
    return Attack((*words, "--json") if rng.random() < 0.5 else words)


# --- bundles ----------------------------------------------------------------------------------------------------------


def sealed(rng: random.Random, files: Mapping[str, bytes], manifest: Any, honest: float = 0.85) -> bytes:
    """manifest.json with hashes and seal as its author would make them, or not."""
    if isinstance(manifest, dict) and rng.random() < honest:
        given = manifest.get("files")
        listed: dict[str, Any] = given if isinstance(given, dict) else {}
        for name in set(listed) & set(files):
            if isinstance(listed[name], dict) and rng.random() < honest:
                listed[name] = {"sha256": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name])}
        data = to_text(rng, {**manifest, SEAL: ZEROS.decode()})
        head, found, tail = data.rpartition(ZEROS)
        return head + hashlib.sha256(data).hexdigest().encode() + tail if found else data
    return to_text(rng, manifest)


def manifest(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A bundle's manifest."""
    files = dict(bases.bundle_files())
    values = {**json.loads(files.pop("manifest.json")), **copy.deepcopy(bases.MEASURED)}
    if rng.random() < 0.2:  # tokens may be any text: what is heard is printed
        values["spec"]["stream"]["decoder"]["tokens"][1:3] = [rng.choice(texts(mark)) for _ in range(2)]
        command = "stream"
    else:
        values = changed(rng, values, mark)
        command = rng.choice(["", "", "", "", "stream", "check"])
    files["manifest.json"] = sealed(rng, files, values)
    attack = _write_bundle(rng, folder, files, command)
    if command == "stream":
        (folder / "spoken.wav").write_bytes(bases.recording())
        return Attack(("stream", attack.words[1], "spoken.wav", "--fast", *attack.words[2:]))
    if command == "check":
        return Attack((*attack.words, "--duration", "0s"))
    return attack


def archive(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A bundle's zip."""
    files = bases.bundle_files()
    path = folder / "tiny.cpu.edge.zip"
    path.write_bytes(attacked_zip(rng, list(files.items()), mark))
    return maybe_json(rng, rng.choice(["inspect", "selftest"]), path.name)


def golden(rng: random.Random, folder: Path, mark: str) -> Attack:
    """The golden arrays of a bundle that is whole but for them."""
    arrays = dict(bases.golden())
    members = []
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array)
        members.append((f"{name}.npy", buffer.getvalue()))
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(members))
        name, _ = members[at]
        members[at] = (name, attacked_npy(rng, arrays[name.removesuffix(".npy")], mark))
    data = attacked_zip(rng, members, mark) if rng.random() < 0.4 else packed(members)
    files = {**bases.bundle_files(), "golden.npz": data}
    values = json.loads(files.pop("manifest.json"))
    if rng.random() < 0.2:
        values["golden"] = changed(rng, values["golden"], mark)
    files["manifest.json"] = sealed(rng, files, values, honest=1.0)
    return _write_bundle(rng, folder, files, "selftest")


def graph(rng: random.Random, folder: Path, mark: str) -> Attack:
    """The model file of a bundle that is whole but for it."""
    data = spoiled(rng, bases.model_bytes()) if rng.random() < 0.4 else attacked_model(rng, mark)
    files = {**bases.bundle_files(), "main.onnx": data}
    values = json.loads(files.pop("manifest.json"))
    files["manifest.json"] = sealed(rng, files, values, honest=1.0)
    return _write_bundle(rng, folder, files, "selftest")


def _write_bundle(rng: random.Random, folder: Path, files: Mapping[str, bytes], command: str = "") -> Attack:
    root = folder / "tiny.cpu.edge"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return maybe_json(rng, command or rng.choice(["inspect", "selftest", "selftest"]), root.name)


# --- data -------------------------------------------------------------------------------------------------------------


def arrays(rng: random.Random, folder: Path, mark: str) -> Attack:
    """--data as an npz."""
    given: dict[str, np.ndarray] = {
        "feats": np.zeros((4, 1, 5, 6), np.float32),
        "att_bias": np.zeros((4, 1, 1, 1, 6), np.float32),
        "target_log_probs": np.zeros((4, 1), np.int64),
    }
    members = []
    for name, array in given.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array)
        whole = rng.random() < 0.5
        members.append((f"{name}.npy", buffer.getvalue() if whole else attacked_npy(rng, array, mark)))
    if rng.random() < 0.2:
        members.append((rng.choice(["notes.txt", "x", "a.npy", ".npy", "feats.npy"]), b"no array"))
    path = folder / "data.npz"
    path.write_bytes(attacked_zip(rng, members, mark) if rng.random() < 0.4 else packed(members))
    return Attack(call=lambda: _loaded(path))


YIELDS = (
    "[]", "None", "3", "'x'", "[1, 2]", "[{}]", "[{}, {}]", "[{1: 2}, {1: 2}]", "[{'feats': [[1], [1, 2]]}] * 3",
    "[{'feats': object()}] * 3", "[{'feats': 'abc', 'att_bias': 'x'}] * 3", "[{'feats': {}, 'att_bias': set()}] * 3",
    "({'feats': np.zeros((1, 5, 6), 'f4'), 'att_bias': None} for _ in range(3))",
    "({'feats': np.full((1, 5, 6), np.nan, 'f4'), 'att_bias': np.zeros((1, 1, 1, 6), 'f4')} for _ in range(3))",
    "({'feats': np.full((1, 5, 6), 1e300), 'att_bias': np.zeros((1, 1, 1, 6), 'f4')} for _ in range(3))",
    "({'feats': np.ma.masked_all((1, 5, 6), 'f4'), 'att_bias': np.zeros((1, 1, 1, 6), 'f4')} for _ in range(3))",
    "({'feats': np.zeros((1, 5, 6), 'f4'), 'att_bias': np.zeros((1, 1, 1, 6), 'f4'), '\\x1b[2J': 1} for _ in range(3))",
    "({'feats': np.zeros((5, 6), 'f4'), 'att_bias': np.zeros((1, 1, 6), 'f4'), 'target_log_probs': 'x'} for _ in 'ab')",
    "({'feats': np.zeros((1, 5, 6), 'c8'), 'att_bias': np.zeros((1, 1, 1, 6), 'M8[s]')} for _ in range(3))",
    "iter(lambda: {'feats': 1 / 0}, 1)", "map(int, ['x'])", "({} for _ in iter(int, 1))", "{'feats': 1}",
    "[type('Odd', (dict,), {'items': lambda s: 1 / 0})(feats=1)] * 3",
    "[type('Odd', (), {'__array__': lambda s, *a, **k: 'text'})()] * 3",
    "[{'feats': type('Odd', (), {'__array__': lambda s, *a, **k: 1 / 0})(), 'att_bias': 1}] * 3",
    "[{'\\ud800': 1}] * 3", "[{'x' * 100_000: 1}] * 3",
)  # fmt: skip


def function(rng: random.Random, folder: Path, mark: str) -> Attack:
    """--data as file.py:function that yields rubbish."""
    path = folder / "data.py"
    body = rng.choice(YIELDS)
    if rng.random() < 0.1:
        body = f"exec({rng.choice(['raise SystemExit(0)', 'raise RuntimeError(chr(27))', 'print(chr(155))'])!r})"
    path.write_text(f"import numpy as np\n\ndef samples():\n    return {body}\n", encoding="utf-8")
    return Attack(call=lambda: _loaded(path, ":samples"))


def _loaded(path: Path, function: str = "", rate: int | None = None) -> None:
    from edgeattn.cli.console import say
    from edgeattn.evaluation.speech import SpeechData
    from edgeattn.sources import load_data
    from tests.runtimes.tiny import tiny_spec

    data = load_data("net.onnx", tiny_spec(), f"{path.name}{function}", None, 8)
    say(f"{rate} {data.origin if data else None}")
    if isinstance(data, SpeechData):
        for utterance in data.evaluation:
            say(f"{utterance.speaker} {' '.join(utterance.words)}")


def transcripts(rng: random.Random, folder: Path, mark: str) -> Attack:
    """--data as a folder with transcripts.tsv."""
    data = folder / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.wav").write_bytes(bases.recording())
    names = ["path", "text", "speaker", "split"]
    rows = [[f"{n % 3}.wav", "one two", "me", rng.choice(["train", "test", ""])] for n in range(6)]
    for _ in range(rng.choice([1, 2, 4])):
        row = rng.choice([names, *rows])
        at = rng.randrange(len(row) or 1)
        choice = rng.random()
        if choice < 0.7 and row:
            row[at] = rng.choice(
                [*texts(mark), "x/" * 3_000, "x" * 5_000, "a\x00.wav", "../data/0.wav", "~root", "data"]
            )
        elif choice < 0.85 and row:
            del row[at]
        else:
            row.append(rng.choice(texts(mark)))
    text = "\n".join("\t".join(row) for row in [names, *rows]) + rng.choice(["\n", "", "\r\n", "\x00"])
    encoded = text.encode("utf-8", "surrogatepass")
    (data / "transcripts.tsv").write_bytes(spoiled(rng, encoded) if rng.random() < 0.2 else encoded)
    if rng.random() < 0.1:
        (data / "0.wav").unlink()
        (data / "0.wav").symlink_to(rng.choice(["/etc/passwd", "0.wav", "missing", "..", "/dev/zero"]))
    return Attack(call=lambda: _loaded(data))


FIELDS = {4: 4, 16: 4, 20: 2, 22: 2, 24: 4, 28: 4, 32: 2, 34: 2, 40: 4}  # of a wav's header: offset -> width


def sound(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A recording."""
    kind = rng.choice(["wav", "wav", "wav", "flac", "ogg"])
    made = bytearray(bases.recording(kind))
    if kind == "wav":
        for _ in range(rng.choice([0, 1, 2])):
            offset, width = rng.choice(list(FIELDS.items()))
            value = rng.choice([0, 1, 2, 3, 7, 8, 24, 32, 64, 0xFFFE, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 384_001])
            made[offset : offset + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    elif kind == "flac" and rng.random() < 0.7:
        at = rng.randrange(8, 42)  # of STREAMINFO: sizes of blocks, rate, channels, samples
        made[at] = rng.randrange(256)
    data = spoiled(rng, bytes(made)) if rng.random() < 0.5 else bytes(made)
    path = folder / f"spoken.{rng.choice([kind, kind, kind, 'raw', 'wav', 'flac', 'mp3', 'au', 'txt'])}"
    path.write_bytes(data)
    return maybe_json(rng, "stream", str(bases.bundle()), path.name, "--fast")


def labelled(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A table of labelled texts, read as convert reads it."""
    rows = [["text", "label"], *([f"a text {n}", str(n % 2)] for n in range(6))]
    for _ in range(rng.choice([1, 2])):
        row = rng.choice(rows)
        if row and rng.random() < 0.8:
            row[rng.randrange(len(row))] = rng.choice(texts(mark))
        else:
            row.append(rng.choice(texts(mark)))
    encoded = "\n".join("\t".join(row) for row in rows).encode("utf-8", "surrogatepass")
    path = folder / rng.choice(["texts.tsv", "texts.tsv.gz"])
    path.write_bytes(spoiled(rng, encoded) if rng.random() < 0.3 else encoded)

    def read() -> None:
        from edgeattn.cli.console import say
        from edgeattn.tasks.tables import read_table

        for row in read_table(path, ("text", "label")):
            say(f"{row.cells['label']}: {row.cells['text']}")

    return Attack(call=read)


# --- TOML -------------------------------------------------------------------------------------------------------------


def target(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A target's file."""
    (folder / "board.toml").write_bytes(toml(rng, bases.TARGET, mark))
    return maybe_json(rng, "inspect", "missing.onnx", "--target", "board.toml")


def plan(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A plan of treatments."""
    (folder / "plan.toml").write_bytes(toml(rng, bases.PLAN, mark))
    return maybe_json(rng, "convert", "missing.onnx", "--plan", "plan.toml", "--precision", "int8")


def settings(rng: random.Random, folder: Path, mark: str) -> Attack:
    """edgeattn.toml."""
    (folder / "edgeattn.toml").write_bytes(toml(rng, bases.SETTINGS, mark))
    return Attack(rng.choice([("models",), ("convert", "missing.onnx"), ("selftest", "missing.edge"), ("--help",)]))


def toml(rng: random.Random, base: Any, mark: str) -> bytes:
    """A TOML text with changed values, or one that nests, counts or names beyond any measure."""
    extra = rng.choice(
        [
            "x = " + "[" * rng.choice([70, 2_000, 50_000]),
            "x = " + "[" * 200 + "]" * 200,
            "x = " + "{a=" * rng.choice([70, 900]) + "1" + "}" * 70,
            "x = 0x" + "f" * rng.choice([17, 10_000, 100_000]),
            "x = " + "9" * rng.choice([20, 5_000]),
            ".".join("a" * rng.choice([3, 300, 3_000, 30_000])) + " = 1",
            "[" + ".".join("b" * rng.choice([3, 300, 3_000])) + "]",
            "x = nan\ny = -inf\nz = 1e400",
            "x = 1979-05-27T07:32:00Z\ny = 07:32:00",
            'x = "\\uD800"',
            'x = """' + "y" * 100_000 + '"""',
            '"\\u001b[2J" = 1',
            "cores = 1\ncores = 2",
            "\x00",
            "# " + "z" * 2**21,
        ]
    )
    choice = rng.random()
    values = changed(rng, base, mark) if choice < 0.8 else copy.deepcopy(base)
    text = _toml_text(values if isinstance(values, dict) else {"x": values})
    if choice > 0.6:
        text = f"{extra}\n{text}" if rng.random() < 0.7 else f"{text}\n{extra}"
    data = text.encode("utf-8", "surrogatepass")
    return spoiled(rng, data) if rng.random() < 0.1 else data


def _toml_text(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{json.dumps(str(key))} = {_toml_value(value)}" for key, value in values.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if value is None:
        return '"none"'
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) or "." in repr(value) else repr(value).replace("e", ".0e")
    return json.dumps(value)


def words(rng: random.Random, folder: Path, mark: str) -> Attack:
    """The command line itself, as a script makes it of names of files and branches."""
    hostile = [text for text in texts(mark) if "\0" not in text and len(text) < 1_000]
    command = rng.choice(
        ["convert", "check", "profile", "inspect", "quantize", "prune", "selftest", "stream", "targets"]
    )
    options = ["--target", "--data", "--device", "--plan", "--bucket", "--fill", "--prune", "--precision", "--backend",
               "--split", "--out", "--deadline", "--samples", "--max-drop", "--loss", "--seed", "--plot"]  # fmt: skip
    chosen = [command]
    for _ in range(rng.choice([1, 1, 2, 3])):
        text = rng.choice(hostile)
        chosen += [rng.choice(options), text] if rng.random() < 0.6 else [text]
    if len(chosen) == 1 or all(word.startswith("-") for word in chosen[1::2]):
        chosen.append("missing.onnx")
    return maybe_json(rng, *chosen)


# --- models -----------------------------------------------------------------------------------------------------------


def onnx_file(rng: random.Random, folder: Path, mark: str) -> Attack:
    """An ONNX file."""
    path = folder / "net.onnx"
    path.write_bytes(spoiled(rng, bases.model_bytes()) if rng.random() < 0.25 else attacked_model(rng, mark))
    return maybe_json(rng, "inspect", path.name)


def ort_file(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A file in ONNX Runtime's own format."""
    (folder / "net.ort").write_bytes(spoiled(rng, bases.ort_bytes()))
    return maybe_json(rng, "inspect", "net.ort")


def tflite_file(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A TFLite file."""
    (folder / "net.tflite").write_bytes(spoiled(rng, bases.tflite_bytes()))
    return maybe_json(rng, "inspect", "net.tflite")


def program(rng: random.Random, folder: Path, mark: str) -> Attack:
    """A .pt2 of torch.export."""
    files = dict(bases.program_files())
    root = next(iter(files)).partition("/")[0]
    texts_of_json = [name for name in files if name.endswith(".json")]
    choice = rng.random()
    path = folder / "net.pt2"
    if choice < 0.2:
        path.write_bytes(attacked_zip(rng, list(files.items()), mark))
        return maybe_json(rng, "inspect", path.name)
    name = f"{root}/models/model.json"
    if choice > 0.85 or name not in files:
        name = rng.choice(texts_of_json or list(files))
    try:
        values = json.loads(files[name])
    except ValueError:
        values = None
    if values is None:
        files[name] = spoiled(rng, files[name])
    elif choice < 0.6:
        files[name] = to_text(rng, _renamed(rng, values, mark))
    else:
        files[name] = to_text(rng, changed(rng, values, mark))
    if rng.random() < 0.1:
        other = rng.choice(list(files))
        files[other] = spoiled(rng, files[other])
    path.write_bytes(packed(list(files.items()), zipfile.ZIP_STORED))
    return maybe_json(rng, "inspect", path.name)


def _renamed(rng: random.Random, value: Any, mark: str) -> Any:
    """The same with one text of it exchanged for another everywhere, so that the parts still agree."""
    found: list[str] = []

    def look(part: Any) -> None:
        if isinstance(part, str):
            found.append(part)
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            look(inner)

    look(value)
    old, new = rng.choice(found), rng.choice(texts(mark))

    def exchanged(part: Any) -> Any:
        if isinstance(part, dict):
            return {exchanged(key): exchanged(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [exchanged(inner) for inner in part]
        return new if part == old else part

    return exchanged(value)


# --- devices ----------------------------------------------------------------------------------------------------------


def device(rng: random.Random, folder: Path, mark: str) -> Attack:
    """The answers of a device."""
    events: list[Any] = copy.deepcopy(bases.answers())
    choice = rng.random()
    if choice < 0.35:  # an answer of another form
        at = rng.randrange(len(events))
        events[at] = changed(rng, events[at], mark)
    elif choice < 0.6:  # what a job told
        event = rng.choice([event for event in events if event["event"] == "done"])
        told = changed(rng, json.loads(event["stdout"]), mark)
        event["stdout"] = to_text(rng, told).decode("utf-8", "replace") + "\n"
    elif choice < 0.7:  # a job that failed
        event = rng.choice([event for event in events if event["event"] == "done"])
        kind = rng.choice(["DeviceError", "UnsupportedError", "ValueError", "InputError", rng.choice(texts(mark))])
        event["stdout"] = json.dumps(changed(rng, {"error": kind, "message": rng.choice(texts(mark))}, mark, 1)) + "\n"
    elif choice < 0.85:  # another order
        at = rng.randrange(len(events))
        match rng.randrange(4):
            case 0:
                events.insert(rng.randrange(len(events)), rng.choice(events))
            case 1:
                del events[at]
            case 2:
                other = rng.choice([{"event": "failed", "problem": "x", "path": ""}, {"event": "busy", "lock": "x"}])
                events.insert(at, changed(rng, other, mark, 1) if rng.random() < 0.5 else other)
            case _:
                rng.shuffle(events)
    lines = []
    for event in events:
        data = to_text(rng, {"nonce": "@NONCE@", **event} if isinstance(event, dict) else event)
        lines.append(data.decode("latin-1") + rng.choice(["\n"] * 30 + ["", "\r\n", "\n\n", "\0"]))
    given: dict[str, Any] = {"play": lines, "endless": "", "stays": rng.random() < 0.8}
    if choice >= 0.85:  # another stream
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines[at:] = [lines[at][: rng.randrange(len(lines[at]) + 1)]]
            case 1:
                lines.insert(at, spoiled(rng, bytes(rng.randrange(256) for _ in range(300))).decode("latin-1"))
            case 2:
                lines.insert(at, rng.choice(["x", "é\x1b[2J", '{"nonce": "@NONCE@", ']) * 100_000 + "\n")
            case 3:
                del lines[at:]
            case _:
                del lines[at:]
                given["endless"] = rng.choice(
                    ["x" * 65_536, "hello there\n", '{"nonce": "@NONCE@", "event": "alive"}\n',
                     '{"nonce": "@NONCE@", "event": "hello"}\n', '{"nonce": "@NONCE@", "event": "x"}\n', "[" * 65_536]
                )  # fmt: skip
    path = folder / "device.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    words = ("profile", str(bases.bundle()), "--device", "ssh://pi@attacked", "--duration", "0s")
    return Attack((*words, "--json") if rng.random() < 0.5 else words, device=path)


def phone(rng: random.Random, folder: Path, mark: str) -> Attack:
    """What a phone without a Python writes."""
    from edgeattn.profiling.benchmark_model import figures_of
    from edgeattn.targets.devices.program import facts_of

    text = rng.choice([bases.PHONE, bases.BENCHMARK])
    for _ in range(rng.choice([1, 2, 5])):
        words = text.split(" ")
        at = rng.randrange(len(words))
        words[at] = rng.choice(
            ["9" * 30, "9" * 6_000, "1.2.3", ".", "1e999", "-1", "nan", "", "²", "٣", rng.choice(texts(mark))]
        )
        text = " ".join(words)
        if rng.random() < 0.3:
            text = spoiled(rng, text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def read() -> None:
        from edgeattn.cli.console import say

        say(str(facts_of(text)))
        say(str(figures_of(text, 1, "adb:1")))

    return Attack(call=read)


KINDS: Mapping[str, Callable[[random.Random, Path, str], Attack]] = {
    "manifest": manifest,
    "zip": archive,
    "golden": golden,
    "graph": graph,
    "npz": arrays,
    "function": function,
    "transcripts": transcripts,
    "audio": sound,
    "texts": labelled,
    "target": target,
    "plan": plan,
    "settings": settings,
    "words": words,
    "onnx": onnx_file,
    "ort": ort_file,
    "tflite": tflite_file,
    "pt2": program,
    "device": device,
    "phone": phone,
}


def command_of(device: Path) -> list[str]:
    """The fake device as a link starts it; the shell command is added."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_device.py")), str(device)]
