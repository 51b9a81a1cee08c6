"""YAML 1.2 with plain values: how scalars are read and written, and which documents are refused."""

import math

import pytest
import yaml
from config_mutations import LAUGHS

from biotorch.errors import ConfigError
from biotorch.experiment.documents import dump, parse, stored

SCALARS = {
    "0100": 100, "-07": -7, "+3": 3, "0o14": 12, "0x1F": 31, "1e3": 1000.0, "1E-8": 1e-8, "+9.e-1": 0.9, ".5": 0.5,
    "-.5e1": -5.0, "1.": 1.0, ".inf": math.inf, "-.INF": -math.inf, "~": None, "": None, "Null": None, "TRUE": True,
    "false": False, "1:30.5": "1:30.5", "190:20:30": "190:20:30", "0b1": "0b1", "1_000": "1_000", "1_0.5": "1_0.5",
    "yes": "yes", "No": "No", "on": "on", "OFF": "OFF", "y": "y", "2020-01-01": "2020-01-01", "=": "=", "0x": "0x",
    "0o8": "0o8", "nan": "nan", "tRUE": "tRUE", "'5'": "5", "!!int 5": 5, "!!float 5": 5.0, "!!str 5": "5",
    "!!bool true": True, "!!null ''": None, "!!seq [1]": [1], "!!map {a: 1}": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_read_as_yaml_1_2_says(text):
    for tree in (parse(f"a: {text}", "x").tree["a"], parse(f"- {text}", "x").tree[0]):
        assert tree == SCALARS[text]
        assert type(tree) is type(SCALARS[text])
    assert math.isnan(parse(".NaN", "x").tree)


def test_what_is_written_is_read_back_unchanged_also_by_readers_of_yaml_1_1():
    words = [text.strip("'") for text in SCALARS if "!" not in text] + ["a\nb", "é", "'", "{", "08", "1e5", "0o17"]
    tree = {
        "words": words,
        "numbers": [0.1, 1e-5, 1e300, -3, 10**30, math.inf],
        "rest": [None, True, {}, [], {"a": ""}],
    }
    assert parse(dump(tree), "x").tree == tree
    assert yaml.safe_load(dump(tree)) == tree
    assert parse(yaml.safe_dump(tree["numbers"]), "x").tree == tree["numbers"]  # as older versions wrote them


REFUSED = {
    "!!timestamp x": "the tag !!timestamp is not in", "!!timestamp 2020-13-45": "!!timestamp", "!!bool yes": "no bool",
    '!!int ""': "'' is no int", "!!int x": "'x' is no int", "!!float ''": "'' is no float", "!!bool foo": "no bool",
    "!!null x": "'x' is no null", "!!binary aGk=": "!!binary", "!!set {a, b}": "!!set", "!!omap [a: 1]": "!!omap",
    "!!seq x": "the tag !!seq does not fit", "!!map [1]": "!!map does not fit", "!!str {a: 1}": "!!str does not fit",
    "!!python/name:os.system ''": "!!python/name:os.system", "!own x": "the tag !own is not",
    "9" * 300: "300 characters", "0x" + "f" * 300: "302 characters", "[" * 60 + "]" * 60: "50 levels",
    "&a [*a]": "an alias that contains itself",
    "&a {b: 1, <<: *a}": "an alias that contains itself", "{<<: 3}": "<< takes a mapping",
    LAUGHS: "20,000 values",
    f"[{'0, ' * 20_001}]": "20,000 values", '"\\ud800"': "surrogate", "*b": "undefined alias", "[": "flow node",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_a_document_beyond_plain_bounded_values_is_refused_in_one_short_line_with_its_place(text):
    with pytest.raises(ConfigError) as caught:
        parse(f"x: 1\na: {text}", "c.yaml")
    assert str(caught.value).startswith("c.yaml:2: not valid YAML: ")
    assert REFUSED[text] in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    if len(text) < 50:
        with pytest.raises(ConfigError, match="override a=b is not valid YAML: "):
            parse(text, "override a=b")


def test_merged_keys_yield_to_own_ones_and_earlier_mappings_to_later_ones_wherever_they_stand():
    text = "a: &a {x: 1, y: 1, z: 1}\nb: {y: 2, <<: [{x: 0}, *a]}\nc: {<<: *a, y: 3}\n"
    document = parse(text, "f")
    assert document.tree["b"] == {"x": 0, "y": 2, "z": 1}
    assert document.tree["c"] == {"x": 1, "y": 3, "z": 1}
    assert (document.places["b", "y"], document.places["c", "z"], document.problems) == ("f:2", "f:1", [])


@pytest.mark.parametrize(
    "text", ["{1: 2}", "{null: 1}", "{a: {true: x}}", "{? [a] : 1}", "{sweep: {a: {b: {1.5: 2}}}}"]
)
def test_a_key_that_is_no_word_is_a_problem_and_left_out(text):
    document = parse(text, "f")
    assert [problem.endswith("a key must be a word") for problem in document.problems] == [True]
    assert not any(isinstance(key, int | None) for key in document.tree)
    assert parse("{sweep: {a: {1: {}, ~: {}, x: {}}}}", "f").problems == []  # cases of a sweep


DAMAGED = [
    "", "null", "[1]", "experiment: {", "\0", "{experiment: {}, data: {}, model: {}, infrastructure: null}",
    "{experiment: {}, data: {}, model: 3, infrastructure: {}}", "a: " + "[" * 5000, f"a: {LAUGHS}", "data: !!set {a}",
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_configuration_of_a_run_is_none(tmp_path, text):
    path = tmp_path / "config.yaml"
    assert stored(path) is None
    path.write_text(text)
    assert stored(path) is None
    path.write_bytes(b"\xff\xfe\xff")
    assert stored(path) is None
    whole = {name: {"a": 1e-5} for name in ("experiment", "data", "model", "infrastructure")}
    path.write_text(dump(whole))
    assert stored(path) == whole
