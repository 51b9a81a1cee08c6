"""Rules are found by any spelling of their names, everywhere; what is stored has their own."""

import dataclasses
import importlib

import pytest
from config_cases import BASE, message, write
from networks import mlp
from rule_names import RULES

import biotorch
from biotorch.experiment import read
from biotorch.experiment.identity import text_of, what_counts
from biotorch.rules import registry

SPELLINGS = [
    ("FA", "fa"), ("feedback_alignment", "fa"), ("Feedback Alignment", "fa"), ("FeedbackAlignment", "fa"),
    ("direct feedback alignment", "dfa"), ("kolen_pollack", "kp"), ("Kolen-Pollack", "kp"), ("weight-mirror", "wm"),
    ("BP", "backpropagation"), ("uniform sign-concordant feedback", "usf"),
    ("fixed random-magnitude sign-concordant feedback", "frsf"),
    ("batchwise random-magnitude sign-concordant feedback", "brsf"),
]  # fmt: skip


@pytest.fixture
def own_rules(monkeypatch):
    """Rules that a test registers disappear with it."""
    for name in ("_REGISTRY", "_ALIASES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.mark.parametrize(("spelled", "name"), SPELLINGS)
def test_a_spelling_finds_its_rule(spelled, name):
    assert registry.own_name(spelled) == name
    assert biotorch.rules.get(spelled) is biotorch.rules.get(name)


@pytest.mark.parametrize("rule", RULES)
def test_capitals_the_title_and_the_name_of_the_class_find_every_rule(rule):
    kind = biotorch.rules.get(rule)
    assert {registry.own_name(each) for each in (rule.upper(), kind.title, kind.__name__)} == {rule}


def test_wherever_a_rule_is_named():
    model = biotorch.convert(mlp(), {"0": "BACKPROPAGATION", "*": "Feedback Alignment"})
    assert [row.rule for row in biotorch.summary(model).rows] == ["backpropagation", "fa", "fa"]
    assert biotorch.layers.Linear(2, 2, rule="kolen_pollack").rule.name == "kp"
    assert biotorch.layers.Linear(2, 2, layer_config={"type": "FA"}).rule.name == "fa"
    assert biotorch.BioModule(mlp(), mode="uSF").module[0].rule.name == "usf"
    for package in ("biotorch.layers", "biotorch.models"):
        module = importlib.import_module(f"{package}.fa")
        assert importlib.import_module(f"{package}.feedback_alignment") is module
        assert importlib.import_module(package).FA is module


def test_a_name_is_taken_in_every_spelling_but_a_class_may_be_called_like_another(own_rules):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FeedbackAlignment(biotorch.rules.get("fa")):
        pass

    with pytest.raises(ValueError, match="'F-A' is already registered"):
        biotorch.rules.register("F-A", transports="nothing")(FeedbackAlignment)
    biotorch.rules.register("mine", "so it is called", transports="nothing")(FeedbackAlignment)
    assert registry.own_name("feedback_alignment") == "fa"
    assert registry.own_name("So_It_Is_Called") == "mine"


def test_a_rule_without_a_title_has_the_words_of_its_class_and_not_the_title_of_its_parent(own_rules):
    class NoisyFeedback(biotorch.rules.get("usf")):
        pass

    class Titled(biotorch.rules.get("usf")):
        title = "my own title"

    for name, kind in {"noisy": NoisyFeedback, "titled": Titled}.items():
        biotorch.rules.register(name, transports="signs")(kind)
    assert (NoisyFeedback.title, Titled.title) == ("noisy feedback", "my own title")
    assert [registry.own_name(each) for each in ("My-own title", "TITLED", NoisyFeedback.title)] == [
        "titled", "titled", "noisy",
    ]  # fmt: skip


# Configurations ------------------------------------------------------------------------------------


def test_a_configuration_keeps_the_rules_own_name(tmp_path):
    spelled = read(write(tmp_path, BASE.replace("type: fa", "type: feedback alignment"))).config
    plain = read(write(tmp_path)).config
    assert spelled.model.mode.type == "fa"
    assert text_of(what_counts(spelled.model_dump(mode="json"))) == text_of(what_counts(plain.model_dump(mode="json")))
    layers = read(
        write(tmp_path), ["model.mode.layers={'0': Kolen-Pollack, '1': {type: DFA}}"]
    ).config.model.mode.layers
    assert [each.type for each in layers.values()] == ["kp", "dfa"]


SWEEP = """\
sweep:
  model.mode.type:
    BP: {training.optimizer.lr: 0.3}
    Feedback Alignment: {training.optimizer.lr: 0.2}
    DFA:
  when:
    - {model.mode.type: direct_feedback_alignment, set: {training.optimizer.lr: 0.4}}
"""


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ([], {"rule=backpropagation": 0.3, "rule=fa": 0.2, "rule=dfa": 0.4}),
        (["model.mode.type=feedback-alignment"], {"rule=fa": 0.2}),
        (["sweep.model.mode.type=[FA, dfa]"], {"rule=fa": 0.1, "rule=dfa": 0.4}),
        (["sweep={rule: {mine: {model.mode.type: FA}}}", "training.optimizer.lr=5"], {"rule=mine": 5}),
    ],
)
def test_folders_conditions_and_overrides_of_a_sweep_mean_the_same_rule(overrides, rates, tmp_path):
    found = read(write(tmp_path, BASE + SWEEP), overrides).points
    assert {name: each.training.optimizer.lr for name, each in found.items()} == rates


def test_one_rule_twice_is_refused(tmp_path):
    path = write(tmp_path)
    assert "a value occurs twice" in message(path, "sweep={model.mode.type: [fa, FA]}")


def test_a_wrong_name_is_answered_with_names_of_rules_only():
    with pytest.raises(ValueError, match=r"unknown rule 'feedbak'\. Did you mean 'feedback alignment'") as caught:
        biotorch.rules.get("feedbak")
    assert str(caught.value).endswith(f"Valid: {', '.join(RULES)}.")
