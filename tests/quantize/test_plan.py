"""Plans: which treatment a layer gets, and the files that say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.engines import TREATMENTS
from edgeattn.errors import InputError
from edgeattn.guards.plain import MAX_TOML_BYTES
from edgeattn.quantize.plan import Plan, Rule, counted, plan_text, read_plan

PATHS = ("subsampling.project", "blocks.0.attention.query", "blocks.0.ffn1.expand", "blocks.1.ffn1.expand", "classify")
names = st.text(st.sampled_from("ab.01*?[]!-_/"), min_size=1, max_size=8)
treatments = st.sampled_from(TREATMENTS)


def written(directory: Path, text: str | bytes) -> Path:
    path = directory / "plan.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_without_rules_every_layer_gets_the_default() -> None:
    assert Plan().resolve(PATHS) == dict.fromkeys(PATHS, "int8")
    assert Plan("float").resolve(PATHS) == dict.fromkeys(PATHS, "float")


def test_patterns_match_whole_paths_as_file_names_do() -> None:
    plan = Plan("int8", (Rule("blocks.?.ffn1.*", "float"), Rule("classify", "int4-weights")))
    assert plan.resolve(PATHS) == {
        "subsampling.project": "int8",
        "blocks.0.attention.query": "int8",
        "blocks.0.ffn1.expand": "float",
        "blocks.1.ffn1.expand": "float",
        "classify": "int4-weights",
    }
    assert Plan("int8", (Rule("ffn1", "float"),)).of("blocks.0.ffn1.expand") == "int8"
    assert Plan("int8", (Rule("CLASSIFY", "float"),)).of("classify") == "int8"


@given(st.lists(treatments, min_size=1, max_size=5), treatments)
def test_the_last_rule_that_matches_wins(given_: list[str], default: str) -> None:
    rules = tuple(Rule("blocks.*", treatment) for treatment in given_)  # type: ignore[arg-type]
    plan = Plan(default, (*rules, Rule("classify", "float")))  # type: ignore[arg-type]
    assert plan.of("blocks.0") == given_[-1]
    assert plan.of("head") == default


def test_every_pattern_without_a_layer_is_named_with_the_layers_there_are() -> None:
    plan = Plan("int8", (Rule("encoder.*", "float"), Rule("blocks.*", "float"), Rule("head", "int8")))
    with pytest.raises(InputError, match=r"no layer matches 'encoder\.\*', 'head'; the layers are subsampling"):
        plan.resolve(PATHS)


def test_of_many_layers_the_first_are_shown() -> None:
    with pytest.raises(InputError, match=r"layers\.19 and 30 more \(edgeattn inspect"):
        Plan("int8", (Rule("head", "float"),)).resolve(f"layers.{i}" for i in range(50))


def test_without_layers_a_rule_matches_nothing() -> None:
    assert Plan().resolve(()) == {}
    with pytest.raises(InputError, match="the layers are none"):
        Plan("int8", (Rule("*", "float"),)).resolve(())


def test_a_layer_that_runs_twice_is_one_layer() -> None:
    assert list(Plan().resolve(["a", "b", "a"])) == ["a", "b"]


@given(st.lists(names, min_size=1, max_size=6, unique=True), st.data(), treatments)
def test_layers_are_put_back_in_float_and_no_others(paths: list[str], data: st.DataObject, default: str) -> None:
    chosen = data.draw(st.lists(st.sampled_from(paths), unique=True))
    plan = Plan(default).with_float(chosen)  # type: ignore[arg-type]
    assert plan.resolve(paths) == {path: "float" if path in chosen else default for path in paths}


def test_float_comes_on_top_of_what_was_asked() -> None:
    plan = Plan("int8", (Rule("blocks.*", "int4-weights"),))
    assert plan.with_float(["blocks.0.ffn1.expand"]).resolve(PATHS)["blocks.0.ffn1.expand"] == "float"
    assert plan.with_float(["blocks.0.ffn1.expand"]).resolve(PATHS)["blocks.1.ffn1.expand"] == "int4-weights"
    assert plan.with_float([]) == plan


def test_a_file_is_read_in_its_order(tmp_path: Path) -> None:
    text = """
        default = "int8-weights"
        [[rules]]
        pattern = "blocks.*"
        treatment = "int8"
        [[rules]]
        pattern = "blocks.0.*"
        treatment = "float"
    """
    assert read_plan(written(tmp_path, text)) == Plan(
        "int8-weights", (Rule("blocks.*", "int8"), Rule("blocks.0.*", "float"))
    )
    assert read_plan(written(tmp_path, "")) == Plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default = ", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
        ('default = "int7"', "plan.default: expected one of float, int8, int8-weights, int4-weights, got 'int7'"),
        ("default = 8", "plan.default: expected one of"),
        ('defualt = "int8"', "plan: unknown field 'defualt'; known: default, rules"),
        ("rules = 3", "plan.rules: expected a list, got int"),
        ("rules = [3]", r"plan.rules\[0\]: expected an object, got int"),
        ('[[rules]]\ntreatment = "int8"', r"plan.rules\[0\]: field 'pattern' is missing"),
        ('[[rules]]\npattern = "a"', r"plan.rules\[0\]: field 'treatment' is missing"),
        ('[[rules]]\npattern = 3\ntreatment = "int8"', r"plan.rules\[0\].pattern: expected str, got 3"),
        ('[[rules]]\npattern = "a"\ntreatment = "int2"', r"plan.rules\[0\].treatment: expected one of"),
        ('[[rules]]\npattern = "a"\ntreatment = "int8"\nbits = 4', r"plan.rules\[0\]: unknown field 'bits'"),
    ],
)
def test_a_file_with_a_fault_is_refused_at_its_place(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the plan cannot be read"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(InputError, match="at most 1048576 bytes"):
        read_plan(written(tmp_path, "#" * (MAX_TOML_BYTES + 1)))
    assert read_plan(written(tmp_path, "#" * MAX_TOML_BYTES)) == Plan()


def test_layers_are_counted_by_treatment() -> None:
    text = counted({"a": "int8", "b": "float", "c": "int8", "d": "int4-weights"})
    assert text == "1 layers float, 2 layers int8, 1 layers int4-weights"
    assert counted({}) == "no layers"


@given(st.dictionaries(names, treatments, max_size=6))
def test_a_written_plan_gives_each_layer_what_it_had(
    tmp_path_factory: pytest.TempPathFactory, had: dict[str, str]
) -> None:
    path = written(tmp_path_factory.mktemp("plan"), plan_text(had))
    assert read_plan(path).resolve(had) == had
