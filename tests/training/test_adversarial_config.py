"""The section `training.adversarial`, and what it refuses."""

import dataclasses
import json

import pytest
import runs
from adversarial_cases import STRONG, config, network
from config_cases import BASE, refused, write
from places import ROOT
from torch.nn import functional as F

from biotorch import data
from biotorch.data.splits import MemorySplit
from biotorch.errors import SectionError
from biotorch.experiment import ConfigError, read
from biotorch.training import Trainer


def adversarial_of(folder, spec):
    return read(write(folder), [f"training.adversarial={spec}"]).config.training.adversarial


def test_the_section_and_its_defaults(tmp_path):
    assert read(write(tmp_path)).config.training.adversarial is None
    found = adversarial_of(tmp_path, "{epsilon: 8/255}")
    assert found.model_dump() == {
        "epsilon": 8 / 255, "steps": 7, "step_size": None, "gradient": "true", "norm": "linf", "random_start": True,
    }  # fmt: skip
    assert adversarial_of(tmp_path, "{epsilon: 3, norm: l2, step_size: 2/255}").step_size == 2 / 255
    for spelling in ("true", "'true'", "True"):
        assert adversarial_of(tmp_path, f"{{epsilon: 0.1, gradient: {spelling}}}").gradient == "true"
    assert adversarial_of(tmp_path, "{epsilon: 0.1, gradient: feedback}").gradient == "feedback"


@pytest.mark.parametrize(
    ("spec", "key", "told"),
    [
        ("{steps: 7}", "epsilon", "missing"),
        ("{epsilon: -0.1}", "epsilon", "greater than or equal to 0, got -0.1"),
        ("{epsilon: .nan}", "epsilon", "finite"),
        ("{epsilon: .inf, norm: l2}", "epsilon", "finite"),
        ("{epsilon: true}", "epsilon", "true is no number"),
        ("{epsilon: [1]}", "epsilon", "valid number, got [1]"),
        ("{epsilon: null}", "epsilon", "valid number"),
        ("{epsilon: '0.1'}", "epsilon", "a number or a fraction such as 8/255 is needed, not the text '0.1'"),
        ("{epsilon: 8/0}", "epsilon", "'8/0' divides by zero"),
        ("{epsilon: 8}", "epsilon", "8 is too large: pixels lie in [0, 1]; give a fraction such as 8/255"),
        ("{epsilon: 0.1, steps: 0}", "steps", "greater than or equal to 1"),
        ("{epsilon: 0.1, steps: true}", "steps", "true is no number"),
        ("{epsilon: 0.1, step_size: 0}", "step_size", "greater than 0"),
        ("{epsilon: 0.1, step_size: a}", "step_size", "such as 8/255 is needed, not the text 'a'"),
        ("{epsilon: 0.1, gradient: false}", "gradient", "'true' or 'feedback', got False"),
        ("{epsilon: 0.1, gradient: fedback}", "gradient", "'true' or 'feedback', got 'fedback'"),
        ("{epsilon: 0.1, norm: l3}", "norm", "'linf', 'l2' or 'l1', got 'l3'"),
        ("{epsilon: 0.1, random_start: 1}", "random_start", "true or false, not 1"),
        ("{epsilon: 0.1, step: 3}", "step", "unknown key. Did you mean 'steps'"),
    ],
)
def test_a_wrong_value_is_told_at_its_key(tmp_path, spec, key, told):
    (problem,) = refused(write(tmp_path), f"training.adversarial={spec}")
    assert problem.startswith(f"override training.adversarial={spec}: training.adversarial.{key}: "), problem
    assert told in problem


def test_a_section_that_is_none_is_told(tmp_path):
    (problem,) = refused(write(tmp_path), "training.adversarial=8/255")
    assert "a section with keys is needed, not '8/255'" in problem


def test_a_text_is_refused_with_its_configuration(tmp_path):
    text = BASE.replace("dataset: digits\n  target_size: 32", "dataset: text:a.txt")
    (problem,) = refused(write(tmp_path, text + "  adversarial: {epsilon: 8/255}\n"))
    assert problem == (
        "base.yaml:16: training.adversarial: a setting of images, but text:a.txt is a text: leave it out"
    )
    (problem,) = refused(write(tmp_path, text + "attacks: {images: 5}\n"))
    assert "attacks: a setting of images" in problem


def test_data_without_images_are_refused_by_the_trainer(digits):
    told = "adversarial: images with one class each are needed, but the training set has none: leave it out"
    labels = digits.train.labels[:, None].repeat(1, 2)
    per_token = MemorySplit.of(digits.train.images, labels, digits.train.normalisation)
    for kind in (dataclasses.replace(digits, mean=(), std=()), dataclasses.replace(digits, train=per_token)):
        with pytest.raises(SectionError) as caught:
            Trainer(network(), kind, config(STRONG), F.cross_entropy, seed=5)
        assert str(caught.value) == told


def test_the_trainer_tells_it_at_the_key_of_a_run(tmp_path, monkeypatch):
    whole = data.load

    def without_mean(*args):
        return dataclasses.replace(whole(*args), mean=(), std=())

    monkeypatch.setattr("biotorch.data.load", without_mean)
    with pytest.raises(ConfigError, match=r"^training\.adversarial: images with one class each are needed"):
        runs.finish(tmp_path, runs.ADVERSARIAL)


def test_the_schema_takes_what_the_reader_takes():
    section = json.loads((ROOT / "configs" / "schema.json").read_text())["$defs"]["AdversarialConfig"]["properties"]
    assert section["gradient"]["enum"] == ["true", "feedback", True]
    number, text = section["epsilon"]["anyOf"]
    assert (number["type"], number["minimum"], text["type"]) == ("number", 0, "string")
    assert "such as 8/255" in section["epsilon"]["description"]
