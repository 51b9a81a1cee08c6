"""Adversarial training: the examples, what they leave alone, under every rule, precision and number of processes."""

import dataclasses
import json
import os
import random
import signal

import numpy as np
import pytest
import runs
import torch
import yaml
from adversarial_cases import STRONG, config, network
from networks import RULES, TRAINING, same, state
from places import HELPERS
from torch import nn
from torch.nn import functional as F
from torchrun import finish, start

import biotorch
from biotorch import data
from biotorch.data import DataError
from biotorch.data.images import Normalisation
from biotorch.data.splits import MemorySplit
from biotorch.experiment import Display, Interrupted, read, run
from biotorch.robustness import PGD, Normalised
from biotorch.training import AdversarialConfig, InfrastructureConfig, Observer, Trainer, launch
from biotorch.training.adversarial import Adversary

#: So small that no value changes by it; but every pass of the attack is made.
NOTHING = {"epsilon": 1e-30, "steps": 2}


def smooth(rule="backpropagation") -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    return biotorch.convert(model, rule, copy_weights=False, seed=1)


def trained(digits, adversarial, model, observer=None, **settings) -> tuple[Trainer, list[torch.Tensor]]:
    """The trainer after its run under one random state, and the inputs of its training passes."""
    torch.manual_seed(2)
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)
    trainer = Trainer(model, digits, config(adversarial, **settings), F.cross_entropy, seed=5, observer=observer)
    trainer.run()
    handle.remove()
    return trainer, seen


def adversary(digits, model, seed=5, fabric=None, **settings) -> Adversary:
    fabric = fabric or launch(InfrastructureConfig())
    return Adversary(AdversarialConfig.model_validate(STRONG | settings), model, digits, fabric, seed)


def first(digits, count=32):
    return next(digits.train.batches([torch.arange(count)]))


def pixels(digits, inputs):
    return inputs * torch.tensor(digits.std).view(-1, 1, 1) + torch.tensor(digits.mean).view(-1, 1, 1)


# The examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("augmented", [False, True])
def test_the_network_trains_on_examples_in_the_ball_around_its_images_and_in_the_cube(norm, augmented, digits):
    if augmented:
        settings = data.DataConfig(dataset="digits", validation_size=1340, augment={"crop": 1, "flip": True})
        digits = data.load(settings, seed=1)
    _, plain = trained(digits, None, network())
    _, perturbed = trained(digits, {"epsilon": 0.1, "steps": 3, "norm": norm}, network())
    assert len(plain) == len(perturbed) == 3
    for inputs, examples in zip(plain, perturbed, strict=True):
        points = pixels(digits, examples)
        change = (points - pixels(digits, inputs)).flatten(1)
        sizes = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        assert (points >= -1e-6).all()
        assert (points <= 1 + 1e-6).all()
        assert (sizes <= 0.1 + 1e-6).all()
        assert sizes.mean() > 0.09


def descended(model, images, labels, mean, std, epsilon, steps):
    """PGD in L∞ from the images, in so many words."""
    points = images.clone()
    for _ in range(steps):
        points.requires_grad_()
        loss = F.cross_entropy(model((points - mean) / std), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        with torch.no_grad():
            moved = points + 2.5 * epsilon / steps * gradient.sign()
            points = moved.maximum(images - epsilon).minimum(images + epsilon).clamp(0, 1)
    return (points - mean) / std


@pytest.mark.parametrize("rule", RULES)
def test_the_examples_are_those_of_a_plain_loop_on_the_network_without_a_rule(rule, digits):
    inputs, labels = first(digits)
    images = pixels(digits, inputs).clamp(0, 1)
    plain = biotorch.revert(smooth()).eval()
    expected = descended(plain, images, labels, digits.mean[0], digits.std[0], 0.1, 3)
    found = adversary(digits, smooth(rule), random_start=False)(inputs, labels, 1, 0, 0)
    # A gradient beside zero may have either sign.
    assert (found - expected).abs().gt(1e-4).float().mean() < 0.001
    with torch.no_grad():
        clean, attacked = (F.cross_entropy(plain(each), labels, reduction="none") for each in (inputs, found))
    assert (attacked > clean).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("backpropagation", "sham")])
def test_those_of_the_feedback_are_others_and_raise_the_loss_less(rule, digits):
    inputs, labels = first(digits)
    model = smooth(rule)
    losses = {}
    for gradient in ("true", "feedback"):
        examples = adversary(digits, model, gradient=gradient)(inputs, labels, 1, 0, 0)
        losses[gradient] = F.cross_entropy(model(examples), labels).item()
    assert losses["feedback"] < losses["true"] - 0.01


def test_no_pass_is_made_but_those_of_the_steps(digits):
    model, passes = network(), []
    model.register_forward_pre_hook(lambda module, args: passes.append(module.training))
    Trainer(model, digits, config({"epsilon": 0.1, "steps": 4}), F.cross_entropy, seed=5)._train()
    assert passes == []  # epoch 0 has no updates
    trainer = Trainer(model, digits, config({"epsilon": 0.1, "steps": 4}), F.cross_entropy, seed=5)
    trainer.epoch = 1
    trainer._train()
    assert passes == 3 * [False, False, False, False, True]


def test_starts_follow_from_seed_place_and_process(digits):
    inputs, labels = first(digits)

    class Other:
        global_rank = 1
        device = torch.device("cpu")
        autocast = staticmethod(launch(InfrastructureConfig()).autocast)

    def examples(*place, seed=5, **settings):
        return adversary(digits, network(), seed=seed, **settings)(inputs, labels, *place)

    reference = examples(1, 2, 0)
    torch.manual_seed(77)
    assert torch.equal(examples(1, 2, 0), reference)
    others = [examples(2, 2, 0), examples(1, 3, 0), examples(1, 2, 1), examples(1, 2, 0, seed=6)]
    others.append(examples(1, 2, 0, fabric=Other()))
    assert not any(torch.equal(other, reference) for other in others)
    still = [examples(*place, random_start=False) for place in ((1, 2, 0), (2, 3, 4))]
    assert torch.equal(*still)


def test_three_channels_and_their_memory_format(digits):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 8, 8, 3), generator=generator, dtype=torch.uint8)
    normalisation = Normalisation((0.1, 0.5, 0.7), (0.2, 0.4, 1.5))
    split = MemorySplit.of(images, torch.arange(20) % 10, normalisation)
    coloured = dataclasses.replace(digits, train=split, mean=normalisation.mean, std=normalisation.std)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    model = model.to(memory_format=torch.channels_last)
    inputs, labels = first(coloured, 20)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    found = adversary(coloured, model)(inputs, labels, 1, 0, 0)
    assert found.is_contiguous(memory_format=torch.channels_last)
    change = (pixels(coloured, found) - pixels(coloured, inputs)).abs().amax((0, 2, 3))
    torch.testing.assert_close(change, torch.full((3,), 0.1))


def test_images_that_are_not_normalised_as_the_data_say_are_refused(digits):
    inputs, labels = first(digits)
    with pytest.raises(DataError, match=r"values from 3\.76 to 4\.76, but need values from 0 to 1"):
        adversary(digits, network())(inputs + 10, labels, 1, 0, 0)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_the_main_output_of_a_network_with_auxiliary_heads_in_every_precision(precision, digits):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = smooth("fa"), smooth("fa")

        def forward(self, x):
            return {"logits": self.main(x), "aux_logits": self.aux(x)}

    inputs, labels = first(digits)
    fabric = launch(InfrastructureConfig(precision=precision))
    model = Heads()
    mine = adversary(digits, model, fabric=fabric)(inputs, labels, 1, 0, 0)
    assert torch.equal(mine, adversary(digits, model.main, fabric=fabric)(inputs, labels, 1, 0, 0))
    assert mine.dtype == torch.float32
    assert F.cross_entropy(model.main(mine), labels) > F.cross_entropy(model.main(inputs), labels) + 0.1
    torch.manual_seed(2)
    trainer = Trainer(model, digits, config(STRONG), F.cross_entropy, 5, fabric)
    trainer.run()
    assert trainer.history[1]["train"]["loss"] > 0


# What they leave alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gradient", ["true", "feedback"])
def test_an_update_under_every_rule_and_one_that_changes_nothing_is_that_of_clean_training_to_the_bit(
    rule, gradient, digits
):
    """Batch statistics, dropout and the feedback of the rule are as if there had been no attack."""
    settings = {"batch_size": 49, "accumulate": 2}
    clean, inputs = trained(digits, None, network(rule), **settings)
    for nothing in (NOTHING, {"epsilon": 0.0}):
        same_one, examples = trained(digits, {**nothing, "gradient": gradient}, network(rule), **settings)
        assert all(torch.equal(*pair) for pair in zip(inputs, examples, strict=True))
        assert same(state(same_one.model), state(clean.model))
        assert same_one.history[1]["train"] == clean.history[1]["train"]
    other, _ = trained(digits, {**STRONG, "gradient": gradient}, network(rule), **settings)
    before = state(network(rule))
    learns = set(before) if rule in TRAINING else {"7.weight", "7.bias"}
    for name, value in other.model.named_parameters():
        assert torch.isfinite(value).all()
        assert torch.equal(value, before[name]) == (name not in learns), name
        if name not in learns:
            continue
        assert not torch.equal(value, dict(clean.model.named_parameters())[name]), name
    if gradient == "true":
        assert other.history[1]["train"]["loss"] > clean.history[1]["train"]["loss"] + 0.1


def test_the_network_and_every_global_generator_are_as_they_were(digits):
    model = network("fa").train()
    model[1].eval()  # a layer whose mode is its own
    inputs, labels = first(digits)
    F.cross_entropy(model(inputs), labels).backward()
    before = state(model), {name: p.grad.clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    adversary(digits, model)(inputs, labels, 1, 0, 0)
    assert same(state(model), before[0])
    assert same({name: p.grad for name, p in model.named_parameters()}, before[1])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]


# Runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["true", "feedback"])
def test_a_training_continues_to_the_bit(gradient, digits, tmp_path):
    class Save(Observer):
        def on_update(self, trainer):
            if (trainer.epoch, trainer.step) == (2, 1):
                torch.save(trainer.state_dict(), tmp_path / "state.pth")

    settings = {"epochs": 3, "batch_size": 20, "accumulate": 2}
    adversarial = {**STRONG, "gradient": gradient}
    whole, inputs = trained(digits, adversarial, network("brsf"), Save(), **settings)
    torch.manual_seed(99)
    model = network("brsf")
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)
    again = Trainer(model, digits, config(adversarial, **settings), F.cross_entropy, seed=5)
    again.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    again.run()
    assert all(torch.equal(*pair) for pair in zip(seen, inputs[-len(seen) :], strict=True))
    assert same(state(again.model), state(whole.model))


def test_a_stopped_run_continues_to_the_bit_and_its_resolved_configuration_is_the_same(tmp_path, monkeypatch):
    class Stop(Display):
        def update(self, trainer):
            if (trainer.epoch, trainer.step) == (2, 2):
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)
    short = ("training.hyperparameters={epochs: 2, batch_size: 50, accumulate: 2}", "data.validation_size=1000")
    overrides = (*runs.EVERYTHING_MATTERS, *short, "training.warmup_epochs=1", runs.ADVERSARIAL)
    with pytest.raises(Interrupted):
        run(runs.quick(tmp_path, *overrides), display=Stop())
    runs.finish(tmp_path, *overrides)
    runs.finish(tmp_path / "whole", *overrides)
    mine, theirs = (runs.left_behind(folder / "quick") for folder in (tmp_path, tmp_path / "whole"))
    assert mine == theirs
    resolved = tmp_path / "quick" / "config.yaml"
    assert yaml.safe_load(resolved.read_text())["training"]["adversarial"] == {
        "epsilon": 16 / 255, "steps": 2, "step_size": None, "gradient": "true", "norm": "linf", "random_start": True,
    }  # fmt: skip
    assert read(resolved).config.training == runs.quick(tmp_path, *overrides).config.training


@pytest.mark.parametrize("rule", ["backpropagation", "dfa"])
def test_adversarial_training_makes_a_network_more_robust(rule, digits):
    everything = data.load(data.DataConfig(dataset="digits"), seed=1)
    robust, clean = {}, {}
    images, labels = next(everything.test.batches([torch.arange(len(everything.test))]))
    images = pixels(everything, images).clamp(0, 1)
    for name, adversarial in (("plain", None), ("adversarial", {"epsilon": 0.1, "steps": 4})):
        trainer, _ = trained(everything, adversarial, smooth(rule), epochs=12)
        attacked = Normalised(trainer.model, everything.mean, everything.std)
        outcome = PGD(attacked, 0.1, steps=20).run(images, labels)
        robust[name] = 100 * outcome.robust.float().mean().item()
        clean[name] = 100 * outcome.clean.float().mean().item()
    print(rule, robust, clean)
    assert robust["plain"] + 10 < robust["adversarial"] < 80
    assert min(clean.values()) > 80


# Two processes -----------------------------------------------------------------------------------


def test_two_processes_have_equal_weights_after_every_update(tmp_path):
    process = start(HELPERS / "adversarial_worker.py", tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert (one["weights"], one["hash"]) == (other["weights"], other["hash"])
    assert len(set(one["weights"])) == len(one["weights"]) == 6
    assert not set(one["examples"]) & set(other["examples"])  # the same image, at the same update
