"""Runs from a configuration: rules by layer, noise before epoch one, signs of gradients, targets, learned feedbacks."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import runs
import torch
from rule_names import RULES, without_decay

import biotorch
from biotorch import data
from biotorch.errors import SectionError
from biotorch.experiment import ConfigError, Interrupted, load, run
from biotorch.experiment.display import Display
from biotorch.experiment.network import build_model
from biotorch.kernel import teaching
from biotorch.training import ResumeError
from biotorch.training.losses import Teacher
from biotorch.training.pretraining import batches
from biotorch.training.settings import NoiseConfig

#: Rules whose B changes, by a step of the optimizer or after one.
LEARNING = [name for name in RULES if biotorch.rules.get(name).learns or biotorch.rules.get(name).has_update()]
SMALL = ("model.architecture=small", "data.target_size=8", "training.optimizer.weight_decay=0.01")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)


def weights_of(folder) -> dict[str, torch.Tensor]:
    return runs.weights(folder / "quick" / "latest_model.pth")


# Rules by layer ----------------------------------------------------------------------------------


@without_decay
def test_layers_have_rules_of_their_own(tmp_path):
    layers = '{classifier.3: backpropagation, "features.0": {type: fa, options: {init: normal}}}'
    runs.finish(tmp_path, f"model.mode={{type: kp, layers: {layers}}}")
    model = load(tmp_path / "quick")
    found = {row.name: row.rule for row in biotorch.summary(model).rows if row.rule}
    assert list(found.items()) == [
        ("features.0", "fa"),
        ("features.3", "kp"),
        ("features.6", "kp"),
        ("classifier.1", "kp"),
        ("classifier.3", "backpropagation"),
    ]


def test_all_layers_may_have_rules_of_their_own(tmp_path):
    study = runs.quick(tmp_path, *SMALL, 'model.mode={type: fa, layers: {"[0-9]": kp}}')
    model = build_model(study.config, 10, (1, 8, 8))
    assert {row.rule for row in biotorch.summary(model).rows if row.rule} == {"kp"}


def test_the_first_pattern_counts_and_one_that_meets_nothing_is_told(tmp_path):
    study = runs.quick(tmp_path, *SMALL, 'model.mode={type: fa, layers: {"[04]": kp, "4": usf}}')
    with pytest.raises(ValueError, match="an earlier pattern matches all of its layers"):
        build_model(study.config, 10, (1, 8, 8))
    study = runs.quick(tmp_path, *SMALL, "model.mode={type: fa, layers: {head: kp}}")
    with pytest.raises(ConfigError, match=r"model\.mode: unknown layer pattern 'head'"):
        run(study)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ("{fc: pk}", r"model\.mode\.layers\.fc\.type: .*'pk'"),
        ("{fc: {type: fa, options: {angle: 3}}}", r"options\.angle"),
        ('{"*": fa}', r"model\.mode\.layers: .*give this rule as the type of the mode"),
        ("{fc: 3}", r"model\.mode\.layers\.fc"),
    ],
)
def test_mistakes_are_told_with_their_key(layers, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        runs.quick(tmp_path, f"model.mode.layers={layers}")


# Every rule learns from a configuration ------------------------------------------------------------


@pytest.mark.parametrize("rule", [*LEARNING, "drtp"])
def test_a_stopped_run_goes_on_with_the_same_bits(rule, tmp_path):
    class Stop(Display):
        def update(self, trainer):
            if (trainer.epoch, trainer.step) == (2, 1):
                signal_self()

    overrides = (*runs.EVERYTHING_MATTERS, f"model.mode.type={rule}", "training.hyperparameters.epochs=3")
    overrides += ("training.optimizer.weight_decay=0.01", "training.noise_pretraining={updates: 3, batch_size: 16}")
    if biotorch.rules.get(rule).learns:
        overrides += ("model.mode.options={feedback_rate: 0.003, feedback_decay: 0.1}",)
    with pytest.raises(Interrupted):
        run(runs.quick(tmp_path / "stopped", *overrides), display=Stop())
    first = run(runs.quick(tmp_path / "stopped", *overrides))[""]
    second = runs.finish(tmp_path / "whole", *overrides)
    assert first["state_hash"] == second["state_hash"]


def signal_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# Rates of feedback ---------------------------------------------------------------------------------


def moved(folder, study) -> set[str]:
    """What a run from scratch has changed of W and B."""
    start, end = build_model(study.config, 10, (1, 8, 8)).state_dict(), weights_of(folder)
    names = [name for name in start if name.endswith(("weight", "feedback")) and start[name].dim() > 1]
    return {name for name in names if not torch.equal(start[name], end[name])}


def test_a_feedback_has_the_rate_of_the_rule_of_its_layer(tmp_path):
    layers = '{"0": {type: kp, options: {feedback_rate: 0}}, "4": {type: dkp, options: {feedback_decay: 0.5}}}'
    mode = f"model.mode={{type: kp, options: {{feedback_rate: 0.004}}, layers: {layers}}}"
    groups = []

    class Look(Display):
        def update(self, trainer):
            groups[:] = trainer.optimizer.param_groups

    study = runs.quick(tmp_path, *SMALL, mode, "training.lr_scheduler={type: ExponentialLR, gamma: 0.5}")
    result = run(study, display=Look())[""]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.005, 0.01),
        (0.0, 0.01),
        (0.005, 0.5),
        (0.002, 0.01),
    ]
    assert [record["learning_rate"] for record in result["history"]] == [0.01, 0.01]
    assert [[tuple(each.shape) for each in group["params"]] for group in groups[1:]] == [
        [(6, 1, 3, 3)], [(10, 216)], [(10, 20)]
    ]  # fmt: skip
    assert moved(tmp_path, study) == {"0.weight", "4.weight", "4.feedback", "7.weight", "7.feedback"}


def test_noise_keeps_the_ratio_of_the_rates(tmp_path):
    noise = "training.noise_pretraining={updates: 3, lr: 0.5}"
    still = ("training.optimizer={type: SGD, lr: 1e-30, weight_decay: 0.1}", noise)
    for rate, expected in (("0", set()), ("1e-30", {"0.feedback", "4.feedback", "7.feedback"})):
        mode = f"model.mode={{type: kp, options: {{feedback_rate: {rate}}}}}"
        study = runs.quick(tmp_path / rate, SMALL[0], SMALL[1], mode, *still)
        run(study)
        assert moved(tmp_path / rate, study) == {"0.weight", "4.weight", "7.weight"} | expected


@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_a_run_from_before_feedback_was_a_parameter_is_not_continued_but_evaluated(rule, tmp_path):
    class Stop(Display):
        def update(self, trainer):
            if trainer.step == 2:
                signal_self()

    overrides = (*SMALL, f"model.mode.type={rule}")
    with pytest.raises(Interrupted):
        run(runs.quick(tmp_path, *overrides), display=Stop())
    path = tmp_path / "quick" / "latest_model.pth"
    content = torch.load(path, weights_only=True)
    model = build_model(runs.quick(tmp_path, *overrides).config, 10, (1, 8, 8))
    names = [name for name, _ in model.named_parameters()]
    old = {
        "state": {
            new: content["optimizer"]["state"][index]
            for new, index in enumerate(index for index, name in enumerate(names) if "feedback" not in name)
        },
        "param_groups": [{**content["optimizer"]["param_groups"][0], "params": list(range(8))}],
    }
    kept = {
        "0.feedback_draws": torch.tensor([1, 2]),
        "0.feedback_state_momentum_buffer": content["model"]["0.feedback"],
    }
    torch.save({**content, "optimizer": old, "model": content["model"] | kept}, path)
    with pytest.raises(ResumeError, match=r"earlier version.*start the run again with --overwrite"):
        run(runs.quick(tmp_path, *overrides))
    assert torch.equal(load(tmp_path / "quick", "latest").get_parameter("0.feedback"), content["model"]["0.feedback"])
    runs.finish(tmp_path, *overrides, overwrite=True)


def test_drtp_gets_its_targets_and_shallow_trains_one_layer(tmp_path):
    assert runs.finish(tmp_path / "drtp", *SMALL, "model.mode.type=drtp")["test"]["error"] < 95
    runs.finish(tmp_path / "shallow", *SMALL, "model.mode.type=shallow", "training.optimizer.weight_decay=0.5")
    model = build_model(runs.quick(tmp_path, *SMALL, "model.mode.type=shallow").config, 10, (1, 8, 8))
    start, end = dict(model.named_parameters()), weights_of(tmp_path / "shallow")
    assert {name for name in start if not torch.equal(start[name], end[name])} == {"7.weight", "7.bias"}


def test_accumulated_signals_have_the_size_of_whole_batches(tmp_path):
    """`drtp` sends what does not depend on the loss: the trainer tells it what an example counts."""
    one = ("model.mode.type=drtp", "data.target_size=32", "training.optimizer.momentum=0")
    for name, batch, accumulate in (("whole", 64, 1), ("parts", 32, 2)):
        sizes = f"training.hyperparameters={{epochs: 1, batch_size: {batch}, accumulate: {accumulate}}}"
        runs.finish(tmp_path / name, *one, sizes, "training.optimizer.lr=0.0001")
    for name, value in weights_of(tmp_path / "whole").items():
        torch.testing.assert_close(weights_of(tmp_path / "parts")[name], value, rtol=1e-3, atol=1e-4)


# Batch Manhattan ---------------------------------------------------------------------------------


def test_batch_manhattan_from_a_configuration(tmp_path):
    signs = (
        "training.optimizer={type: SGD, lr: 0.001, batch_manhattan: true}",
        "training.hyperparameters.batch_size=2000",
    )
    runs.finish(tmp_path, *SMALL[:2], *signs)
    model = build_model(runs.quick(tmp_path, *SMALL[:2], *signs).config, 10, (1, 8, 8))
    for name, start in model.named_parameters():  # one update: each weight by the rate, or not at all
        moved = (weights_of(tmp_path)[name] - start).abs()
        assert ((moved - 0.001).abs().lt(1e-6) | moved.lt(1e-8)).all(), name


# Noise before epoch one --------------------------------------------------------------------------


def test_noise_comes_before_epoch_one_and_is_the_seed_s(tmp_path):
    noise = ("training.noise_pretraining={updates: 20, batch_size: 32, lr: 0.05}", *runs.ALL_METRICS)
    first = runs.finish(tmp_path / "a", *SMALL, *noise)
    second = runs.finish(tmp_path / "b", *SMALL, *noise)
    plain = runs.finish(tmp_path / "c", *SMALL, *runs.ALL_METRICS)
    assert first["state_hash"] == second["state_hash"] != plain["state_hash"]
    begun = [result["history"][0]["angles"] for result in (first, plain)]
    assert all(begun[0][name] != begun[1][name] for name in begun[0])  # W has moved before it has seen an image


def test_its_rate_is_its_own_and_its_updates_are_told(tmp_path):
    """By the loss with which epoch one begins."""
    seen: list[tuple[int, int]] = []

    class Listen(Display):
        def noise(self, done, updates):
            seen.append((done, updates))

    begun = {}
    for name, rate in (("none", None), ("default", "null"), ("same", "0.01"), ("tiny", "1e-12")):
        noise = () if rate is None else (f"training.noise_pretraining={{updates: 5, lr: {rate}}}",)
        begun[name] = run(runs.quick(tmp_path / name, *SMALL, *noise), display=Listen())[""]["history"][0]["validation"]
    assert seen == 3 * [(done, 5) for done in range(5)]
    assert begun["default"] == begun["same"]
    assert begun["tiny"]["loss"] == pytest.approx(begun["none"]["loss"], rel=1e-6)
    assert abs(begun["default"]["loss"] - begun["none"]["loss"]) > 1e-3


def test_a_run_stopped_in_its_noise_begins_anew_and_ends_with_the_same_bits(tmp_path):
    class Stop(Display):
        def noise(self, done, updates):
            if done == 3:
                signal_self()

    overrides = (*SMALL, "training.noise_pretraining={updates: 8}")
    with pytest.raises(Interrupted):
        run(runs.quick(tmp_path / "stopped", *overrides), display=Stop())
    first = run(runs.quick(tmp_path / "stopped", *overrides))[""]
    assert first["state_hash"] == runs.finish(tmp_path / "whole", *overrides)["state_hash"]


def test_drtp_meets_noise_with_its_targets(tmp_path):
    runs.finish(tmp_path, *SMALL, "model.mode.type=drtp", "training.noise_pretraining={updates: 2}")


@pytest.mark.parametrize(
    ("rule", "wanted"), [("drtp", True), ("sdfa", True), ("dkp", False), ("dfa", False), ("kp", False)]
)
def test_the_trainer_tells_what_a_loss_scaler_multiplies_by(rule, wanted):
    """fp16 wants a GPU; what the trainer says of it does not."""
    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    fabric = SimpleNamespace(strategy=SimpleNamespace(precision=SimpleNamespace(scaler=scaler)))
    teacher = Teacher(runs.small(10), fabric)
    with teacher.tells(torch.tensor([1]), 0.5):
        assert teaching.current().y is None  # backpropagation wants none
    teacher = Teacher(biotorch.convert(runs.small(10), rule), fabric)
    with teacher.tells(torch.tensor([1]), 0.5):
        told = teaching.current()
    assert (told.y is not None) == wanted
    assert (told.scale, told.loss_scale) == ((0.5, 1024.0) if wanted else (None, 1.0))


def test_under_noise_the_output_layer_turns_to_its_b(tmp_path):
    """As Cheon et al. report; by how much depends on network, optimizer and length."""
    angles = []
    for name, noise in (("plain", "null"), ("noise", "{updates: 2000}")):
        mlp = (
            "model.architecture=mlp",
            "model.arguments={depth: 1, width: 100, activation: relu}",
            "data.target_size=8",
        )
        optimizer = "training.optimizer={type: Adam, lr: 0.001}"
        result = runs.finish(tmp_path / name, *mlp, optimizer, f"training.noise_pretraining={noise}", *runs.ALL_METRICS)
        angles.append(list(result["history"][0]["angles"].values())[-1])
    assert angles[1] < angles[0] - 4


def test_statistics_of_noise_are_not_kept(tmp_path):
    class Look(Display):
        seen = None

        def update(self, trainer):
            if Look.seen is None:
                Look.seen = int(trainer.model[1].num_batches_tracked)

    noise = "training.noise_pretraining={updates: 5}"
    run(runs.quick(tmp_path, *SMALL, noise), display=Look())
    assert Look.seen == 1


def test_statistics_that_a_checkpoint_brought_are_kept(tmp_path):
    runs.finish(tmp_path / "first", *SMALL)
    checkpoint = f"model.checkpoint={tmp_path / 'first' / 'quick'}"
    frozen = ("training.optimizer.lr=1e-12", "training.noise_pretraining={updates: 5}")
    history = [
        runs.finish(tmp_path / name, *SMALL, checkpoint, *more)["history"][0]["validation"]
        for name, more in (("plain", frozen[:1]), ("noise", frozen))
    ]
    assert history[0]["loss"] == pytest.approx(history[1]["loss"], rel=1e-5)


def test_more_processes_than_examples_are_refused():
    config = NoiseConfig(updates=1, batch_size=6)
    config.require_shares(3, 2)
    with pytest.raises(SectionError, match=r"6 examples are too few for 4 processes: each needs 2"):
        config.require_shares(4, 2)


def test_shares_of_the_processes_are_those_of_one():
    config, digits = NoiseConfig(updates=2, batch_size=5), data.load(data.DataConfig(dataset="digits"), seed=0)
    whole = list(batches(config, digits, 7, torch.device("cpu"), 0, 1))
    shares = [list(batches(config, digits, 7, torch.device("cpu"), rank, 2)) for rank in (0, 1)]
    for number, each in enumerate(whole):
        assert torch.equal(shares[0][number].inputs, each.inputs[0::2])
        assert torch.equal(shares[1][number].labels, each.labels[1::2])
        assert each.whole == 5
    assert not torch.equal(whole[0].inputs, whole[1].inputs)


def test_noise_is_refused_for_texts(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not " * 500)
    text = (f"data={{dataset: 'text:{tmp_path / 'a.txt'}'}}", "training.noise_pretraining={updates: 5}")
    with pytest.raises((ConfigError, SectionError), match=r"training\.noise_pretraining: noise is made of numbers"):
        runs.quick(tmp_path, *text, "model.architecture=char_transformer")


def test_a_checkpoint_whose_cluster_has_imports_is_read(tmp_path):
    """Runs wrote the key, empty, when it stood in that section."""
    runs.finish(tmp_path, *SMALL)
    for name in ("model_best_acc.pth", "latest_model.pth"):
        path = tmp_path / "quick" / name
        content = torch.load(path, weights_only=True)
        content["config"]["cluster"]["imports"] = []
        torch.save(content, path)
    model = load(tmp_path / "quick")
    assert {row.rule for row in biotorch.summary(model).rows if row.rule} == {"fa"}
    with pytest.raises(ConfigError, match=r"cluster\.imports: it has moved to the top of the file"):
        runs.quick(tmp_path, "cluster.imports=[my_rules]")


# Older runs --------------------------------------------------------------------------------------


def test_a_run_that_does_not_know_the_new_keys_is_still_the_same_run(tmp_path):
    runs.finish(tmp_path)
    path = tmp_path / "quick" / "results.json"
    content = json.loads(path.read_text())
    del content["digest"], content["config"]["imports"], content["config"]["model"]["mode"]["layers"]
    del (
        content["config"]["training"]["noise_pretraining"],
        content["config"]["training"]["optimizer"]["batch_manhattan"],
    )
    path.write_text(json.dumps(content))
    before = path.read_text()
    run(runs.quick(tmp_path))
    assert path.read_text() == before
