"""The training loop: what an update is made of, and the learning rate of each."""

import itertools
import math

import pytest
import runs
import torch
from networks import RULES
from rule_names import without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import data
from biotorch.experiment import ConfigError, run
from biotorch.training import Observer, ResumeError, Trainer, TrainingConfig, fit
from biotorch.training.optimizers import FeedbackGroup, optimizer_names
from biotorch.training.schedules import scheduler_names


@pytest.fixture(scope="module")
def digits():
    """97 images of 8x8 for training, so that the last of batches of 32 or 16 holds one."""
    return data.load(data.DataConfig(dataset="digits", validation_size=1340), seed=1)


class Rates(Observer):
    """The learning rate and a copy of the weights after each update."""

    def __init__(self):
        self.rates, self.groups, self.weights, self.places = [], [], [], []

    def on_update(self, trainer):
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])
        self.groups.append([{**group, "params": None} for group in trainer.optimizer.param_groups])
        self.weights.append([p.detach().clone() for p in trainer.model.parameters()])
        self.places.append((trainer.epoch, trainer.step))


def config(epochs=1, batch_size=32, accumulate=1, optimizer=None, **training) -> TrainingConfig:
    hyperparameters = {"epochs": epochs, "batch_size": batch_size, "accumulate": accumulate}
    optimizer = optimizer or {"type": "SGD", "lr": 0.1}
    return TrainingConfig.model_validate({"hyperparameters": hyperparameters, "optimizer": optimizer, **training})


def network(rule="backpropagation") -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    return biotorch.convert(model, rule, copy_weights=False, seed=1)


def trained(digits, settings, rule="backpropagation", loss=F.cross_entropy, model=None):
    """The observer, and the trainer after its run."""
    rates = Rates()
    trainer = Trainer(model or network(rule), digits, settings, loss, seed=5, observer=rates)
    trainer.run()
    return rates, trainer


def slow_feedback(digits, settings, observer=None) -> Trainer:
    """Under `kp`, where B of the two layers have a hundredth and two thirds of W's rate."""
    model = network("kp")
    groups = [FeedbackGroup([model[1].feedback], 0.001, 0.5), FeedbackGroup([model[3].feedback], 0.1 * 2 / 3)]
    return Trainer(model, digits, settings, F.cross_entropy, seed=5, observer=observer, feedback=groups)


# Updates -----------------------------------------------------------------------------------------


@without_decay
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clip", [None, 0.2])
def test_accumulated_batches_are_one_large_batch(rule, clip, digits):
    settings = {"clip_gradient_norm": clip, "epochs": 2, "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9}}
    (large, one), (small, many) = (
        trained(digits, config(batch_size=size, accumulate=times, **settings), rule)
        for size, times in ((48, 1), (12, 4))
    )
    assert large.places == small.places == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    for first, second in zip(large.weights, small.weights, strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for first, second in zip(one.history[1:], many.history[1:], strict=True):
        assert first["train"] == pytest.approx(second["train"], rel=1e-4)


@pytest.mark.parametrize("rule", ["backpropagation", "kp"])
def test_the_loop_is_the_plain_loop(rule, digits):
    """Accumulation by hand, in the order that the seed gives; clipping by the norm of all but B."""
    settings = config(
        epochs=2, batch_size=16, accumulate=2, clip_gradient_norm=0.3,
        optimizer={"type": "SGD", "lr": 0.1, "weight_decay": 0.01},
    )  # fmt: skip
    rates, _ = trained(digits, settings, rule)
    reference, trainer = network(rule), Trainer(network(rule), digits, settings, F.cross_entropy, seed=5)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, weight_decay=0.01)
    own = [parameter for name, parameter in reference.named_parameters() if "feedback" not in name]
    clipped, number = 0, 0
    for epoch in (1, 2):
        for update in trainer.updates_of(epoch):
            optimizer.zero_grad()
            for images, labels in digits.train.batches(torch.split(update, 16)):
                (F.cross_entropy(reference(images), labels) * (len(labels) / len(update))).backward()
            norm = torch.cat([parameter.grad.flatten() for parameter in own]).norm()
            nn.utils.clip_grads_with_norm_(reference.parameters(), 0.3, norm)
            clipped += norm > 0.3
            optimizer.step()
            for mine, theirs in zip(rates.weights[number], reference.parameters(), strict=True):
                torch.testing.assert_close(mine, theirs)
            number += 1
    assert 0 < clipped <= number == 8


def test_gradients_are_unscaled_before_they_are_clipped(digits, monkeypatch):
    """As under a loss scaler."""
    settings = config(clip_gradient_norm=0.3)
    expected, _ = trained(digits, settings)
    observer = Rates()
    trainer = plain(digits, settings, observer)

    def unscale(optimizer):
        assert type(optimizer) is torch.optim.SGD  # a scaler knows no other
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad /= 1024

    monkeypatch.setattr(trainer.fabric, "backward", lambda loss: (1024 * loss).backward())
    monkeypatch.setattr(trainer.fabric.strategy.precision, "unscale_gradients", unscale)
    trainer.run()
    for mine, theirs in zip(observer.weights[-1], expected.weights[-1], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_every_example_is_seen_once_per_epoch_in_another_order(digits):
    trainer = Trainer(network(), digits, config(epochs=3, batch_size=16), F.cross_entropy, seed=5)
    orders = [torch.cat(trainer.updates_of(epoch)).tolist() for epoch in (1, 2, 3)]
    assert all(sorted(order) == list(range(len(digits.train))) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    other = Trainer(network(), digits, config(batch_size=16), F.cross_entropy, seed=6)
    assert torch.cat(other.updates_of(1)).tolist() != orders[0]


def test_the_tracked_training_loss_is_that_of_the_batches_as_they_came(digits):
    _, trainer = trained(digits, config(optimizer={"type": "SGD", "lr": 1e-30}, batch_size=16))
    everything = next(digits.train.batches([torch.arange(len(digits.train))]))
    expected = F.cross_entropy(network()(everything[0]), everything[1]).item()
    assert trainer.history[1]["train"]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_last_batch_of_one(normalised, digits):
    assert len(digits.train) % 32 == 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), *[nn.BatchNorm1d(12)] * normalised, nn.Linear(12, 10))
    biotorch.convert(model, "dfa")
    rates, trainer = trained(digits, config(epochs=2), model=model)
    per_epoch = 3 if normalised else 4
    assert rates.places[-1] == (2, per_epoch)
    assert len(rates.places) == 2 * per_epoch
    assert math.isfinite(trainer.history[2]["train"]["loss"])


@pytest.mark.parametrize("size", [97, 98, 5000])
def test_a_batch_may_be_larger_than_the_data(size, digits):
    rates, _ = trained(digits, config(epochs=2, batch_size=size, accumulate=3))
    assert rates.places == [(1, 1), (2, 1)]


# Learning rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "updates"), [(0, 0), (0.25, 1), (0.5, 2), (1, 4), (2.5, 10), (3, 12)])
def test_the_warm_up_is_linear_by_update(epochs, updates, digits):
    rates, _ = trained(digits, config(epochs=3, warmup_epochs=epochs))
    # `rates` is what holds after an update: that of the next one.
    used = [0.1 / max(updates, 1), *rates.rates[:-1]]
    assert used == pytest.approx([0.1 * min(1, (n + 1) / max(updates, 1)) for n in range(12)], rel=1e-12)


def test_a_schedule_steps_each_epoch_or_each_update(digits):
    step = {"type": "StepLR", "step_size": 2, "gamma": 0.5}
    rates, trainer = trained(digits, config(epochs=5, lr_scheduler=step))
    assert [record["learning_rate"] for record in trainer.history] == [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]
    rates, _ = trained(digits, config(epochs=1, lr_scheduler={**step, "interval": "update"}))
    assert rates.rates == [0.1, 0.05, 0.05, 0.025]


def test_multistep_after_a_warm_up(digits):
    schedule = {"type": "multistep_lr", "gamma": 0.1, "milestones": [2, 3]}
    _, trainer = trained(digits, config(epochs=4, lr_scheduler=schedule, warmup_epochs=1))
    rates = [record["learning_rate"] for record in trainer.history[1:]]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


SCHEDULES = {
    "StepLR": {"step_size": 2}, "MultiStepLR": {"milestones": [1, 2]}, "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5}, "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1}, "OneCycleLR": {"max_lr": 0.1},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
}  # fmt: skip


PLATEAU = ("ReduceLROnPlateau", "update")  # refused: it follows what is known once per epoch


@pytest.mark.parametrize(
    ("name", "interval"),
    [pair for pair in itertools.product(scheduler_names(), ("epoch", "update")) if pair != PLATEAU],
)
def test_no_warm_up_exceeds_the_rate_that_the_schedule_alone_has(name, interval, digits):
    schedule = {"type": name, "interval": interval, **SCHEDULES.get(name, {})}
    alone, _ = trained(digits, config(epochs=4, lr_scheduler=schedule))
    warmed, _ = trained(digits, config(epochs=4, lr_scheduler=schedule, warmup_epochs=1.5))
    assert all(a <= b * (1 + 1e-9) for a, b in zip(warmed.rates, alone.rates, strict=True))
    assert warmed.rates[0] < 0.5 * alone.rates[0]  # and it does something
    assert warmed.rates[8:] == pytest.approx(alone.rates[8:])


@pytest.mark.parametrize("name", scheduler_names())
def test_every_schedule_and_its_momentum_is_resumed(name, digits, tmp_path):
    schedule = {"type": name, **SCHEDULES.get(name, {})}
    optimizer = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    settings = config(epochs=4, lr_scheduler=schedule, optimizer=optimizer, warmup_epochs=2.25)
    require_resumed(digits, settings, tmp_path, slow_feedback)


@pytest.mark.parametrize("warm_up", [0, 1.5])
@pytest.mark.parametrize("optimizer", [{"type": "SGD", "momentum": 0.9}, {"type": "AdamW"}], ids=lambda it: it["type"])
@pytest.mark.parametrize(
    ("name", "interval"),
    [pair for pair in itertools.product(scheduler_names(), ("epoch", "update")) if pair != PLATEAU],
)
def test_rates_of_feedback_keep_their_ratio_under_every_schedule(name, interval, optimizer, warm_up, digits):
    schedule = {"type": name, "interval": interval, **SCHEDULES.get(name, {})}
    optimizer = {**optimizer, "lr": 0.1, "weight_decay": 0.25}
    settings = config(epochs=3, lr_scheduler=schedule, optimizer=optimizer, warmup_epochs=warm_up)
    observer = Rates()
    slow_feedback(digits, settings, observer).run()
    alone, trainer = trained(digits, settings, "kp")
    assert observer.rates == alone.rates
    assert trainer.history[-1]["learning_rate"] in (alone.rates[-1], alone.rates[-2])
    for weights, first, second in observer.groups:
        assert first["lr"] == pytest.approx(weights["lr"] / 100, rel=1e-12)
        assert second["lr"] == pytest.approx(weights["lr"] * 2 / 3, rel=1e-12)
        assert [group["weight_decay"] for group in (weights, first, second)] == [0.25, 0.5, 0.25]
        for key in ("momentum", "betas"):
            assert weights.get(key) == first.get(key) == second.get(key)


def test_a_rate_of_feedback_of_its_own_changes_nothing_of_the_first_step_of_weights(digits):
    observer = Rates()
    trainer = slow_feedback(digits, config(batch_size=97), observer)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.run()
    (alone, _), names = trained(digits, config(batch_size=97), "kp"), [n for n, _ in trainer.model.named_parameters()]
    for name, start, mine, theirs in zip(names, before, observer.weights[0], alone.weights[0], strict=True):
        ratio = {"1.feedback": 0.01, "3.feedback": 2 / 3}.get(name, 1.0)
        decay = 1 - 0.001 * 0.5 if name == "1.feedback" else 1.0
        torch.testing.assert_close(mine, start * decay + ratio * (theirs - start), rtol=1e-5, atol=1e-7)


def test_noise_has_the_same_groups_and_ratios(digits):
    trainer = slow_feedback(digits, config())
    weights, first, second = trainer.new_optimizer(lr=0.5).param_groups
    assert [weights["lr"], first["lr"], second["lr"]] == pytest.approx([0.5, 0.005, 0.5 * 2 / 3])
    assert first["weight_decay"] == 0.5
    assert len(weights["params"]) == 4


def test_a_state_whose_optimizer_had_no_feedback_is_refused(digits):
    old = Trainer(network("fa"), digits, config(), F.cross_entropy, seed=5).state_dict()
    before = torch.get_rng_state()
    for trainer in (Trainer(network("kp"), digits, config(), F.cross_entropy, seed=5), slow_feedback(digits, config())):
        with pytest.raises(ResumeError, match="start the run again with --overwrite"):
            trainer.load_state_dict(old)
    assert torch.equal(torch.get_rng_state(), before)


OPTIMIZERS = [name for name in optimizer_names() if name != "Muon"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_resumed(name, digits, tmp_path):
    require_resumed(digits, config(epochs=4, optimizer={"type": name, "lr": 0.001}), tmp_path)


def plain(digits, settings, observer) -> Trainer:
    return Trainer(network(), digits, settings, F.cross_entropy, seed=5, observer=observer)


def require_resumed(digits, settings, folder, build=plain):
    whole = Rates()
    build(digits, settings, whole).run()

    class Save(Rates):
        def on_update(self, trainer):
            super().on_update(trainer)
            if (trainer.epoch, trainer.step) == (3, 2):
                torch.save(trainer.state_dict(), folder / "state.pth")

    build(digits, settings, Save()).run()
    second = Rates()
    trainer = build(digits, settings, second)
    trainer.load_state_dict(torch.load(folder / "state.pth", weights_only=True))
    trainer.run()
    assert second.places == whole.places[10:]
    assert second.groups == whole.groups[10:]
    assert all(torch.equal(a, b) for a, b in zip(second.weights[-1], whole.weights[-1], strict=True))


# Early stop --------------------------------------------------------------------------------------

ERRORS = [90.0, 80.0, 70.0, 70.0, 69.9, 75.0, 75.0, 60.0, 50.0]


@pytest.mark.parametrize(
    ("stop", "last"),
    [({"patience": 1}, 3), ({"patience": 2}, 6), ({"patience": 3}, 8), ({"patience": 2, "min_delta": 0.5}, 4)],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_early_stop_is_at_its_epoch_and_stays_stopped(stop, last, resumed, digits, monkeypatch):
    def scripted(model, split, *args, **kwargs):
        return {"loss": 1.0, "error": ERRORS[trainer.epoch]}

    monkeypatch.setattr("biotorch.training.loop.evaluate", scripted)
    settings = config(epochs=8, early_stop=stop)
    trainer = Trainer(network(), digits, settings, F.cross_entropy, seed=5)
    trainer.run()
    assert trainer.history[-1]["epoch"] == last
    assert ERRORS[trainer.best["epoch"]] == min(ERRORS[1 : last + 1])
    if resumed:
        state = trainer.state_dict()
        trainer = Trainer(network(), digits, settings, F.cross_entropy, seed=5)
        trainer.load_state_dict(state)
        trainer.run()
        assert trainer.history[-1]["epoch"] == last


# Names -------------------------------------------------------------------------------------------


def test_an_optimizer_that_rejects_the_network_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.optimizer.*2D"):
        runs.finish(tmp_path, "training.optimizer={type: Muon, lr: 0.01}")


@pytest.mark.parametrize("steps", ["total_steps: 3", "epochs: 1, steps_per_epoch: 2"])
def test_a_schedule_that_ends_before_the_training_is_told(steps, tmp_path):
    schedule = f"training.lr_scheduler={{type: OneCycleLR, max_lr: 0.1, {steps}}}"
    with pytest.raises(ConfigError, match=r"training\.lr_scheduler"):
        runs.finish(tmp_path, schedule)


@pytest.mark.parametrize("loss", biotorch.training.losses.loss_names())
def test_every_loss_trains_every_direction(loss, digits):
    if loss in ("NLLLoss", "BCELoss", "KLDivLoss"):  # they take probabilities, which these networks do not give
        return
    criterion = biotorch.training.LossConfig(name=loss).build()
    _, trainer = trained(digits, config(epochs=3, optimizer={"type": "Adam", "lr": 0.01}), "fa", criterion)
    losses = [record["validation"]["loss"] for record in trainer.history]
    assert losses[-1] < losses[0]


def test_label_smoothing_and_mean_squared_error_by_name(tmp_path):
    smooth = runs.finish(tmp_path / "a", "model.loss_function={name: cross_entropy, label_smoothing: 0.1}")
    squared = runs.finish(tmp_path / "b", "model.loss_function.name=mse")
    plain = runs.finish(tmp_path / "c")
    assert len({result["state_hash"] for result in (smooth, squared, plain)}) == 3
    assert squared["test"]["loss"] < 1


def test_fit_leaves_the_best_model_and_tells_each_epoch(digits):
    model, told = network(), []
    schedule = {"type": "StepLR", "step_size": 2, "gamma": 1000}
    history = fit(model, digits, config(epochs=4, lr_scheduler=schedule), F.cross_entropy, 5, told.append)
    assert told == history
    best = min(record["validation"]["error"] for record in history[1:])
    assert biotorch.training.evaluate(model, digits.validation, F.cross_entropy)["error"] == best
    assert history[4]["validation"]["error"] > best


def test_a_frozen_layer_stays(digits):
    model = network("fa")
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    trained(digits, config(), model=model)
    assert torch.equal(model[1].weight, before)


def test_a_run_of_two_epochs_with_sixteen_bit_scaling_is_told_or_works_on_the_cpu(tmp_path):
    with pytest.warns(UserWarning, match="the CPU does not support 16-mixed, so bf16-mixed is used"):
        result = run(runs.quick(tmp_path, "infrastructure.precision=16-mixed", "data.validation_size=1200"))[""]
    assert math.isfinite(result["test"]["loss"])
