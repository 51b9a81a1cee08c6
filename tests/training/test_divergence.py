"""A training that diverges stops, says where and what to do, and leaves a good checkpoint."""

import math

import pytest
import runs
import torch
from networks import TRAINING
from rule_names import without_decay

import biotorch
from biotorch.experiment import CheckpointError, Display, run
from biotorch.experiment.measure import evaluate_run
from biotorch.training import DivergenceError

CURES = ("training.optimizer.lr", "training.warmup_epochs", "training.clip_gradient_norm", "gradient_clip")


@without_decay
@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("rule", TRAINING)
def test_a_rate_far_too_high_stops_with_place_and_cure_and_leaves_a_good_checkpoint(rule, seconds, tmp_path):
    rate = ("training.optimizer={type: SGD, lr: 1e20}", f"infrastructure.checkpoint_seconds={seconds}")
    study = runs.quick(tmp_path, *rate, f"model.mode.type={rule}")
    with pytest.raises(DivergenceError, match=r"epoch 1, (?:after )?step \d+\.") as caught:
        run(study)
    message = str(caught.value)
    assert all(cure in message for cure in CURES)
    assert "layer " in message
    named = message.partition("layer ")[2].split()[0].rstrip(".")
    model = biotorch.load(tmp_path / "quick", "latest")
    assert named in dict(model.named_modules())
    # Good: the network still gives finite figures.
    figures = evaluate_run(tmp_path / "quick", "test", "latest")
    assert math.isfinite(figures["loss"])
    assert not (tmp_path / "quick" / "results.json").exists()


def test_it_is_told_under_bf16_too(tmp_path):
    """There lightning-fabric wants every backward pass to be its own, this one included."""
    rate = ("training.optimizer={type: SGD, lr: 1e20}", "infrastructure.precision=bf16-mixed")
    with pytest.raises(DivergenceError, match=r"layer \S+ is the first whose gradient of this step is not finite"):
        run(runs.quick(tmp_path, *rate))


class Bend(Display):
    """Makes one thing of the network nan or infinite after the first update of epoch 2."""

    def __init__(self, what, value):
        self.what, self.value = what, value

    def update(self, trainer):
        if (trainer.epoch, trainer.step) == (2, 1):
            with torch.no_grad():
                getattr(trainer.model.features[3], self.what).fill_(self.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_epoch_and_the_step_are_right_and_the_last_good_checkpoint_stays(value, tmp_path):
    overrides = ("training.hyperparameters.epochs=3", "infrastructure.checkpoint_seconds=0")
    with pytest.raises(DivergenceError, match=r"features\.3 .*epoch 2, step 1|epoch 2, step 2"):
        run(runs.quick(tmp_path, *overrides), display=Bend("weight", value))
    state = torch.load(tmp_path / "quick" / "latest_model.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 0)
    result = runs.finish(tmp_path, *overrides)  # what was to blame is gone: the run continues
    assert result["state_hash"] == runs.finish(tmp_path / "whole", *overrides)["state_hash"]


def test_the_layer_is_that_of_the_first_gradient_that_is_not_finite(tmp_path):
    """The error explodes on its way back through the third layer: it, and not the output, is named."""

    class Explode(Display):
        def update(self, trainer):
            if trainer.step == 2:
                trainer.model.features[6].feedback.fill_(math.inf)

    with pytest.raises(DivergenceError) as caught:
        run(runs.quick(tmp_path, "model.mode.type=fa"), display=Explode())
    assert "layer features.3" in str(caught.value)


def test_a_validation_that_is_not_finite_stops_too(tmp_path, monkeypatch):
    """The statistics of batch norm are used in evaluation alone."""

    class Spoil(Display):
        def update(self, trainer):
            if (trainer.epoch, trainer.step) == (1, trainer.steps):
                trainer.model[1].running_var.fill_(math.inf)
                trainer.model[1].running_mean.fill_(math.nan)

    monkeypatch.setitem(biotorch.models.registry.OWN, "small", runs.small)
    study = runs.quick(tmp_path, "model.architecture=small", "data.target_size=8")
    with pytest.raises(DivergenceError, match=r"validation loss is nan after epoch 1") as caught:
        run(study, display=Spoil())
    assert all(cure in str(caught.value) for cure in CURES)


def test_a_network_that_is_not_finite_before_training_is_told(tmp_path):
    """Weights of a checkpoint, say."""
    runs.finish(tmp_path / "before", "data.validation_size=1300")
    path = tmp_path / "bad.pth"
    state = biotorch.load(tmp_path / "before" / "quick").state_dict()
    state["features.0.weight"].fill_(math.nan)
    torch.save(state, path)
    with pytest.raises((DivergenceError, CheckpointError)):
        runs.finish(tmp_path, f"model.checkpoint={path}")
