"""The paper's and the first system's files as they are, overrides, the resolved configuration, and the JSON schema."""

import copy
import json
import re
import warnings

import pytest
import yaml
from config_cases import BASE, CONFIGS, FILES, flat, message, refused, write
from places import ROOT
from typer.testing import CliRunner

from biotorch.cli.app import app
from biotorch.experiment import read
from biotorch.experiment.reading import validate as validate_tree


def test_listing_1_of_the_paper_is_read_verbatim():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = read(FILES / "listing1.yaml").config
    found = flat(config.model_dump(mode="json"))
    expected = flat(yaml.safe_load((FILES / "listing1.yaml").read_text()))
    expected["experiment", "output_dir"] = "trained_models_final/cifar10/resnet20"
    assert {key: found[key] for key in expected} == expected
    assert config.data.augmentation is not None


def test_the_first_systems_files_are_read_with_one_warning():
    with pytest.warns(UserWarning, match="Adam takes no momentum: ignored") as told:
        config = read(FILES / "first_system.yaml").config
    assert len(told) == 1
    assert config.training.metrics.weight_alignment
    assert config.model.mode.options == {"constrain_weights": True, "init": "xavier", "gradient_clip": False}
    assert config.infrastructure.gpus == 0


# Overrides ---------------------------------------------------------------------------------------


def test_the_value_of_an_override_is_yaml(tmp_path):
    config = read(
        write(tmp_path),
        ["experiment.name=a=b c", "experiment.seed= 5 ", "data.augment={crop: 2, flip: false}", "evaluation=FALSE",
         "training.optimizer.weight_decay=1e-4", "model.checkpoint=~", "infrastructure.gpus=[0, 2]",
         "logging.wandb='7'"],
    ).config  # fmt: skip
    assert (config.experiment.name, config.experiment.seed, config.evaluation) == ("a=b c", 5, False)
    assert (config.data.augment.crop, config.data.augment.flip) == (2, False)
    assert (config.training.optimizer.weight_decay, config.model.checkpoint) == (1e-4, None)
    assert (config.infrastructure.gpus, config.logging.wandb) == ([0, 2], "7")


def test_an_override_makes_the_sections_it_needs_and_the_last_one_counts(tmp_path):
    path = write(tmp_path, BASE + "logging:\n")
    overrides = [
        "logging.tensorboard=false",
        "training.early_stop.patience=3",
        "experiment.seed=1",
        "experiment.seed=2",
    ]
    config = read(path, overrides).config
    assert (config.logging.tensorboard, config.training.early_stop.patience, config.experiment.seed) == (False, 3, 2)
    config = read(write(tmp_path), ["training.optimizer={type: Adam, lr: 1}", "training.optimizer.lr=2"]).config
    assert config.training.optimizer.model_dump() == {"type": "Adam", "lr": 2, "batch_manhattan": False}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("nonsense", "'nonsense' is not an override: write key.path=value"),
        ("", "'' is not an override: write key.path=value"),
        ("=3", "write key.path=value"),
        ("experiment..name=3", "write key.path=value"),
        ("training.optimizer.lr=[1", "override training.optimizer.lr=[1 is not valid YAML"),
        ("experiment.name.x=1", "override experiment.name.x=1: experiment.name is a value, not a section"),
        ("experiment={name: a, name: b}", "name: this key is already set"),
        ("experiment.name=a\x00", "experiment.name=a"),
        ("training.optimizer.lr=*x", "not valid YAML"),
        ("training.optimizer.lr=", "training.optimizer.lr: Input should be a valid number"),
    ],
)
def test_a_wrong_override_is_told_with_the_rest(tmp_path, override, told):
    text = message(write(tmp_path, BASE + "evaluaton: true\n"), override)
    assert told in text
    assert "base.yaml:17: evaluaton: unknown key" in text


def test_the_place_of_a_problem_is_where_its_value_was_set_last(tmp_path):
    path = write(tmp_path, BASE.replace("lr: 0.1", "lr: -1"))
    assert refused(path)[0].startswith("base.yaml:16: training.optimizer.lr: ")
    assert refused(path, "training.optimizer.lr=-2")[0].startswith("override training.optimizer.lr=-2: ")
    override = "training.optimizer={type: SGD, lr: -3}"
    assert refused(path, override)[0].startswith(f"override {override}: training.optimizer.lr: ")
    assert refused(path, "training.optimizer.lr=-2", "training.optimizer.lr=-4")[0].startswith(
        "override training.optimizer.lr=-4"
    )
    assert read(path, ["training.optimizer.lr=1"]).config.training.optimizer.lr == 1


def test_a_long_value_is_not_printed_in_full(tmp_path):
    assert len(message(write(tmp_path, BASE.replace("name: base", f"name: {list(range(5000))}")))) < 2000


# The resolved configuration ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Adam takes no momentum")
@pytest.mark.parametrize(
    "path", [*CONFIGS, *sorted(FILES.glob("*.yaml"))], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_resolved_configuration_is_valid_again_and_equal(path, tmp_path):
    for name, config in read(path).points.items():
        written = tmp_path / "config.yaml"
        written.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        again = read(written)
        assert again.points == {"": config}, name
        assert validate_tree(again.config.model_dump(mode="json"), "again").config == config


# The JSON schema -----------------------------------------------------------------------------------

SCHEMA = json.loads((ROOT / "configs" / "schema.json").read_text())
KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": int | float,
    "null": type(None),
}
CHECKED = {
    "$ref", "$defs", "$schema", "type", "enum", "const", "anyOf", "required", "properties", "additionalProperties",
    "items", "minItems", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength",
}  # fmt: skip
SAID = {"title", "description", "default", "examples", "format", "pattern", "markdownDescription"}


def complaints(value, schema, at="top"):
    """What is wrong with a value by the part of JSON schema that ours uses (jsonschema is no dependency)."""
    assert schema.keys() <= CHECKED | SAID, f"this test does not know {schema.keys() - CHECKED - SAID}"
    found = []
    if "$ref" in schema:
        found += complaints(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], at)
    if "anyOf" in schema:
        branches = [complaints(value, branch, at) for branch in schema["anyOf"]]
        found += [] if [] in branches else branches[0]
    kinds = schema.get("type", list(KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        kinds = [kind for kind in kinds if kind not in ("integer", "number")]
    of_kind = any(isinstance(value, KINDS[kind]) for kind in kinds)
    if not of_kind:
        return [*found, f"{at}: {value!r} is no {kinds}"]
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        found.append(f"{at}: {value!r} is not one of {schema.get('enum')}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above = schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1)
        high, below = schema.get("maximum", value), schema.get("exclusiveMaximum", value + 1)
        found += [] if low <= value <= high and above < value < below else [f"{at}: {value} is out of range"]
    if isinstance(value, list):
        found += [f"{at}: {value} is too short"] if len(value) < schema.get("minItems", 0) else []
        found += [text for each in value for text in complaints(each, schema.get("items", {}), at)]
    if isinstance(value, dict):
        found += [f"{at}: {key} is missing" for key in schema.get("required", []) if key not in value]
        for key, each in value.items():
            below = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            if below is False:
                found.append(f"{at}: {key} is unknown")
            elif isinstance(below, dict):
                found += complaints(each, below, f"{at}.{key}")
    return found


def test_the_schema_in_configs_is_what_the_command_prints():
    printed, written = json.loads(CliRunner().invoke(app, ["schema"]).stdout), copy.deepcopy(SCHEMA)
    rules = [each["$defs"]["ModeConfig"]["properties"]["type"].pop("examples") for each in (written, printed)]
    assert printed == written
    assert set(rules[0]) <= set(rules[1])  # a new rule need not touch the file


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_first_line_of_a_config_points_at_the_schema(path):
    pointer = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", path.read_text().splitlines()[0])
    assert pointer
    assert (path.parent / pointer[1]).resolve() == ROOT / "configs" / "schema.json"


@pytest.mark.parametrize(
    "path", [*CONFIGS, *sorted(FILES.glob("*.yaml"))], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_config_is_valid_by_the_schema(path):
    text = re.sub(r"\b(\d)e-(\d)", r"\1.0e-\2", path.read_text())  # PyYAML's own loader knows only this spelling
    assert complaints(yaml.safe_load(text), SCHEMA) == []


@pytest.mark.parametrize("precision", ["32", "'32'", "bf16-mixed", "16-mixed"])
def test_every_precision_that_is_read_is_valid_by_the_schema(tmp_path, precision):
    text = f"{BASE}infrastructure: {{precision: {precision}}}\n"
    assert read(write(tmp_path, text)).config.infrastructure.precision == precision.strip("'")
    assert complaints(yaml.safe_load(text), SCHEMA) == []


@pytest.mark.parametrize(
    "override",
    ["experiment.sed=1", "data.target_size=a", "training.hyperparameters.epochs=0", "infrastructure.gpus=a",
     "logging.tensorboard=3", "model.mode.option={}", "evaluaton=true", "training.metrics.topk=5",
     "infrastructure.precision=16"],
)  # fmt: skip
def test_what_the_reader_refuses_the_schema_marks_too(tmp_path, override):
    assert refused(write(tmp_path), override)
    tree = yaml.safe_load(BASE)
    *parents, last = override.partition("=")[0].split(".")
    section = tree
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = yaml.safe_load(override.partition("=")[2])
    assert complaints(tree, SCHEMA)


def test_the_schema_names_what_can_be_named_and_knows_both_spellings():
    properties = {name: section["properties"] for name, section in SCHEMA["$defs"].items()}
    assert {"fa", "dfa", "backpropagation"} <= set(properties["ModeConfig"]["type"]["examples"])
    assert {"SGD", "Adam", "RMSprop"} <= set(properties["OptimizerConfig"]["type"]["examples"])
    assert {"MultiStepLR", "OneCycleLR"} <= set(properties["SchedulerConfig"]["type"]["examples"])
    assert "resnet20" in properties["ModelConfig"]["architecture"]["examples"]
    assert {"mnist", "cifar10_benchmark"} <= set(properties["DataConfig"]["dataset"]["examples"])
    assert {"layer_alignment", "weight_alignment"} <= properties["MetricsConfig"].keys()
