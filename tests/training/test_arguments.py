"""Optimizers, schedules and losses of torch by name: their arguments are theirs, and are checked before a run."""

import inspect
import math
import warnings

import pytest
import torch
from config_cases import BASE, message, refused, write
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from biotorch.errors import SectionError
from biotorch.experiment import read
from biotorch.training.losses import loss_names
from biotorch.training.optimizers import FeedbackGroup, OptimizerConfig, optimizer_names
from biotorch.training.schedules import scheduler_names


def optimizer(folder, spec):
    return read(write(folder), [f"training.optimizer={spec}"]).config.training.optimizer


def stepped(optimizer_config):
    """The optimizer after one step over a matrix."""
    weight = nn.Parameter(torch.ones(3, 2))
    built = optimizer_config.build([weight])
    weight.grad = torch.ones(3, 2)
    built.step()
    assert not torch.equal(weight, torch.ones(3, 2))
    return built


OF_TORCH = {
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}


def test_every_optimizer_of_torch_but_two_can_be_named():
    assert set(optimizer_names()) == OF_TORCH - {"LBFGS", "SparseAdam"}


@pytest.mark.parametrize("name", sorted(OF_TORCH - {"LBFGS", "SparseAdam"}))
def test_an_optimizer_is_that_of_torch_under_any_spelling(tmp_path, name):
    for spelling in (name, name.lower(), name.upper()):
        built = stepped(optimizer(tmp_path, f"{{type: {spelling}, lr: 0.125}}"))
        assert type(built) is getattr(torch.optim, name)
        assert built.param_groups[0]["lr"] == 0.125


def test_the_papers_spellings_of_optimizers_are_understood_with_their_arguments(tmp_path):
    built = stepped(optimizer(tmp_path, "{type: RMSProp, lr: 0.1, momentum: 0.5, alpha: 0.8}"))
    assert isinstance(built, torch.optim.RMSprop)
    assert (built.param_groups[0]["momentum"], built.param_groups[0]["alpha"]) == (0.5, 0.8)
    built = stepped(optimizer(tmp_path, "{type: Adam, lr: 0.1, betas: [0.8, 0.9], weight_decay: 1e-3}"))
    assert (tuple(built.param_groups[0]["betas"]), built.param_groups[0]["weight_decay"]) == ((0.8, 0.9), 1e-3)


def test_adams_momentum_is_ignored_with_a_warning_and_sgds_is_not(tmp_path):
    with pytest.warns(UserWarning, match="Adam takes no momentum: ignored"):
        config = optimizer(tmp_path, "{type: Adam, lr: 0.1, momentum: 0.9}")
    assert "momentum" not in stepped(config).param_groups[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stepped(optimizer(tmp_path, "{type: SGD, lr: 0.1, momentum: 0.9}")).param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("spec", "key", "told"),
    [
        ("{type: LBFGS, lr: 1}", "type", "it evaluates the loss several times per step"),
        ("{type: SparseAdam, lr: 1}", "type", "it takes only sparse gradients"),
        ("{type: Adamm, lr: 1}", "type", "Did you mean 'Adam'"),
        ("{type: Optimizer, lr: 1}", "type", "unknown optimizer 'Optimizer'"),
        ("{type: SGD, lr: 1, momentun: 0.9}", "momentun", "Did you mean 'momentum'"),
        ("{type: Adam, lr: 1, beta: [0.9, 0.99]}", "beta", "Did you mean 'betas'"),
        ("{type: SGD, lr: 1, betas: [0.9, 0.99]}", "betas", "unknown argument of SGD 'betas'"),
        ("{type: SGD, lr: 1, params: []}", "params", "unknown argument of SGD 'params'"),
        ("{type: SGD, lr: 1, momentum: a}", "momentum", "valid number"),
        ("{type: SGD, lr: 1, momentum: true}", "momentum", "number"),
        ("{type: SGD, lr: 1, momentum: .nan}", "momentum", "finite"),
        ("{type: SGD, lr: 1, weight_decay: .inf}", "weight_decay", "finite"),
        ("{type: SGD, lr: 1, nesterov: 3}", "nesterov", "valid boolean"),
        ("{type: Adam, lr: 1, betas: 7}", "betas", "got 7"),
        ("{type: Adam, lr: 1, betas: [0.9]}", "betas", "got [0.9]"),
        ("{type: Adam, lr: 1, betas: [0.9, a]}", "betas", "valid number"),
    ],
)
def test_a_wrong_argument_of_an_optimizer_is_told_at_its_key(tmp_path, spec, key, told):
    (problem,) = refused(write(tmp_path), f"training.optimizer={spec}")
    assert f": training.optimizer.{key}: " in problem
    assert told in problem


@pytest.mark.parametrize(
    "spec",
    ["{type: SGD, lr: 1, weight_decay: -3}", "{type: SGD, lr: 1, nesterov: true}",
     "{type: Adam, lr: 1, betas: [0.9, 2]}",
     "{type: SGD, lr: 1, fused: true, foreach: true}", "{type: Adam, lr: 1, capturable: true}"],
)  # fmt: skip
def test_what_torch_refuses_of_an_optimizer_is_told_before_training(tmp_path, spec):
    (problem,) = refused(write(tmp_path), f"training.optimizer={spec}")
    assert problem.startswith(f"override training.optimizer={spec}: training.optimizer")


def test_all_wrong_arguments_are_told_even_where_the_rate_is_missing(tmp_path):
    told = message(write(tmp_path), "training.optimizer={type: SGD, momentun: 1, nestrov: true, dampening: a}")
    for part in ("momentun", "nestrov", "dampening", "lr: missing"):
        assert f"training.optimizer.{part}" in told


# Groups of feedback weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OF_TORCH - {"LBFGS", "SparseAdam"}))
def test_every_optimizer_takes_groups_of_feedback_or_says_why_not(name):
    config = OptimizerConfig(type=name, lr=0.125)
    weight, feedback, frozen = (nn.Parameter(torch.ones(3, 2)) for _ in range(3))
    built = config.build([weight, feedback], [FeedbackGroup([feedback, frozen], 0.5), FeedbackGroup([frozen], 0.25)])
    assert [(group["params"], group["lr"]) for group in built.param_groups] == [([weight], 0.125), ([feedback], 0.5)]
    decayed = FeedbackGroup([feedback], decay=0.25)
    if name == "Rprop":
        with pytest.raises(SectionError, match="Rprop takes no weight_decay, so feedback_decay cannot be used"):
            config.build([weight, feedback], [decayed])
    else:
        own = config.build([weight, feedback], [decayed]).param_groups[1]
        assert (own["lr"], own["weight_decay"]) == (0.125, 0.25)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "{type: kp, options: {feedback_rate: -1}}",
            "options.feedback_rate: feedback_rate must be a number of at least 0",
        ),
        ("{type: dkp, options: {feedback_rate: .inf}}", "options.feedback_rate: feedback_rate must be a number"),
        ("{type: dkp, options: {feedback_decay: true}}", "options.feedback_decay: feedback_decay must be a number"),
        ("{type: dkp, options: {feedback_decai: 1}}", "Did you mean 'feedback_decay'"),
        ("{type: ia, options: {feedback_rate: 0}}", "feedback_rate is a number above 0"),
        ("{type: fa, options: {feedback_rate: 1}}", "unknown option of rule 'fa' 'feedback_rate'"),
        ("{type: fa, layers: {'f.*': {type: kp, options: {feedback_rate: a}}}}", "layers.f.*.options.feedback_rate: "),
    ],
)
def test_a_wrong_rate_of_feedback_is_told_at_its_key(tmp_path, options, told):
    (problem,) = refused(write(tmp_path), f"model.mode={options}")
    assert problem.startswith(f"override model.mode={options}: model.mode.")
    assert told in problem


def test_a_decay_of_feedback_that_the_optimizer_cannot_have_is_told_at_its_line(tmp_path):
    rprop = "training.optimizer={type: Rprop, lr: 0.1}"
    text = BASE.replace("type: fa\n", "type: dkp\n    options:\n      feedback_decay: 0.1\n")
    (problem,) = refused(write(tmp_path, text), rprop)
    assert problem.startswith("base.yaml:11: model.mode.options.feedback_decay: Rprop takes no weight_decay")
    layers = "model.mode={type: fa, layers: {'f.*': {type: kp, options: {feedback_decay: 0}}}}"
    (problem,) = refused(write(tmp_path), rprop, layers)
    assert "model.mode.layers.f.*.options.feedback_decay: Rprop takes no weight_decay" in problem


# Schedules ---------------------------------------------------------------------------------------

SCHEDULES = {
    "StepLR": {"step_size": 2, "gamma": 0.5}, "MultiStepLR": {"milestones": [1, 3], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5}, "LinearLR": {"total_iters": 3}, "ExponentialLR": {"gamma": 0.5},
    "PolynomialLR": {"total_iters": 4, "power": 2.0}, "CosineAnnealingLR": {"T_max": 3},
    "CosineAnnealingWarmRestarts": {"T_0": 2}, "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "OneCycleLR": {"max_lr": 0.5}, "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 2},
}  # fmt: skip


def test_every_schedule_of_torch_that_needs_no_code_can_be_named():
    assert set(scheduler_names()) == set(SCHEDULES)
    rest = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    } - set(SCHEDULES)
    assert rest == {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_schedule_is_that_of_torch_with_its_arguments(tmp_path, name):
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).strip("_")
    spelling = snake if name != "MultiStepLR" else "multistep_lr"
    config = read(write(tmp_path), [f"training.lr_scheduler={ {'type': spelling, **SCHEDULES[name]} }"]).config
    rates = []
    for build in (
        lambda it: config.training.lr_scheduler.build(it, updates=5),
        lambda it: getattr(lr_scheduler, name)(
            it, **SCHEDULES[name], **({"total_steps": 5} if name == "OneCycleLR" else {})
        ),
    ):
        rule = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        schedule = build(rule)
        rates.append([])
        for _ in range(4):
            rule.step()
            schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            rates[-1].append(rule.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert config.training.lr_scheduler.per_update == (name in ("OneCycleLR", "CyclicLR"))


@pytest.mark.parametrize(
    ("spec", "key", "told"),
    [
        ("{type: step, step_size: 1}", "type", "Did you mean 'StepLR'"),
        ("{type: LambdaLR, lr_lambda: 1}", "type", "a configuration cannot hold"),
        ("{type: StepLR}", "step_size", "missing"),
        ("{type: StepLR, step_size: 1.5}", "step_size", "got 1.5"),
        ("{type: StepLR, step_size: 1, verbose: true}", "verbose", "unknown argument of StepLR"),
        ("{type: MultiStepLR, milestones: 5}", "milestones", "valid list"),
        ("{type: MultiStepLR, milestones: [a]}", "milestones", "valid integer"),
        ("{type: StepLR, step_size: 1, interval: batch}", "interval", "'epoch' or 'update'"),
        ("{type: ExponentialLR, gamma: .nan}", "gamma", "finite"),
    ],
)
def test_a_wrong_argument_of_a_schedule_is_told_at_its_key(tmp_path, spec, key, told):
    (problem,) = refused(write(tmp_path), f"training.lr_scheduler={spec}")
    assert f": training.lr_scheduler.{key}: " in problem
    assert told in problem


@pytest.mark.parametrize(
    "spec",
    ["{type: StepLR, step_size: 0}", "{type: StepLR, step_size: -1}", "{type: ExponentialLR, gamma: -1}",
     "{type: ReduceLROnPlateau, interval: update}",
     "{type: CosineAnnealingLR, T_max: 0}", "{type: OneCycleLR, max_lr: 0.1, epochs: 3}"],
)  # fmt: skip
def test_a_schedule_that_would_stop_the_run_or_turn_the_rate_negative_is_refused_before_it(tmp_path, spec):
    assert refused(write(tmp_path), f"training.lr_scheduler={spec}")


def test_a_schedule_that_the_optimizer_cannot_have_is_told_as_one_of_the_schedule(tmp_path):
    overrides = ["training.optimizer={type: Adagrad, lr: 0.1}",
                 "training.lr_scheduler={type: CyclicLR, base_lr: 0.1, max_lr: 0.2}"]  # fmt: skip
    assert "training.lr_scheduler" in message(write(tmp_path), *overrides)


# Losses ------------------------------------------------------------------------------------------


def loss(folder, spec):
    return read(write(folder), [f"model.loss_function={spec}"]).config.model.loss_function.build()


OUTPUTS = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
LABELS = torch.tensor([1, 2])
ONE_HOT = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

LOSSES = {
    "CrossEntropyLoss": lambda x: (x.exp().sum(1).log() - x[[0, 1], LABELS]).mean(),
    "NLLLoss": lambda x: -(x[0, 1] + x[1, 2]) / 2,
    "MultiMarginLoss": lambda x: sum(
        max(0, 1 - x[row, y] + x[row, c]) / 3 for row, y in enumerate(LABELS) for c in range(3) if c != y
    ) / 2,
    "MSELoss": lambda x: (0.04 + 0.09 + 0.01 + 0.25 + 0.0625 + 0.5625) / 6,
    "L1Loss": lambda x: (0.2 + 0.3 + 0.1 + 0.5 + 0.25 + 0.75) / 6,
    "SmoothL1Loss": lambda x: (0.04 + 0.09 + 0.01 + 0.25 + 0.0625 + 0.5625) / 12,
    "HuberLoss": lambda x: (0.04 + 0.09 + 0.01 + 0.25 + 0.0625 + 0.5625) / 12,
    "BCELoss": lambda x: -(ONE_HOT * x.log() + (1 - ONE_HOT) * (1 - x).log()).mean(),
    "BCEWithLogitsLoss": lambda x: -(ONE_HOT * F.logsigmoid(x) + (1 - ONE_HOT) * F.logsigmoid(-x)).mean(),
    "MultiLabelSoftMarginLoss": lambda x: -(ONE_HOT * F.logsigmoid(x) + (1 - ONE_HOT) * F.logsigmoid(-x)).mean(),
    "KLDivLoss": lambda x: -(x[0, 1] + x[1, 2]) / 6,
    "PoissonNLLLoss": lambda x: (x.exp() - ONE_HOT * x).mean(),
    "SoftMarginLoss": lambda x: (1 + (-(2 * ONE_HOT - 1) * x).exp()).log().mean(),
}  # fmt: skip


def test_every_loss_that_can_be_named_is_tested():
    assert set(loss_names()) == set(LOSSES)


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_the_mean_of_its_formula_over_labels_made_into_its_targets(tmp_path, name):
    value = loss(tmp_path, f"{{name: {name}}}")(OUTPUTS, LABELS)
    torch.testing.assert_close(value, torch.as_tensor(LOSSES[name](OUTPUTS), dtype=torch.float32))
    assert type(loss(tmp_path, f"{{name: {name.removesuffix('Loss').lower()}}}").function) is getattr(nn, name)


def test_arguments_of_losses_do_what_they_do_in_torch(tmp_path):
    smooth = loss(tmp_path, "{name: cross_entropy, label_smoothing: 0.3}")(OUTPUTS, LABELS)
    target = 0.7 * ONE_HOT + 0.1
    torch.testing.assert_close(smooth, -(target * OUTPUTS.log_softmax(1)).sum(1).mean())
    weighted = loss(tmp_path, "{name: cross_entropy, weight: [1, 2, 6]}")(OUTPUTS, LABELS)
    each = -OUTPUTS.log_softmax(1)[[0, 1], LABELS]
    torch.testing.assert_close(weighted, (2 * each[0] + 6 * each[1]) / 8)
    assert math.isclose(loss(tmp_path, "{name: huber, delta: 0.1}").function.delta, 0.1)


@pytest.mark.parametrize(
    ("spec", "key", "told"),
    [
        ("{name: crossentropi}", "name", "Did you mean 'CrossEntropyLoss'"),
        ("{name: CTCLoss}", "name", "it does not compare outputs with class labels"),
        ("{name: cross_entropy, reduction: sum}", "reduction", "leave it out"),
        ("{name: cross_entropy, label_smothing: 0.1}", "label_smothing", "Did you mean 'label_smoothing'"),
        ("{name: mse, label_smoothing: 0.1}", "label_smoothing", "unknown argument of MSELoss"),
        ("{name: cross_entropy, size_average: true}", "size_average", "unknown argument"),
        ("{name: cross_entropy, weight: 3}", "weight", "got 3"),
        ("{name: cross_entropy, ignore_index: 1.5}", "ignore_index", "got 1.5"),
        ("{name: cross_entropy, label_smoothing: .nan}", "label_smoothing", "finite"),
        ("{type: mse}", "type", "unknown argument of CrossEntropyLoss 'type'"),
    ],
)
def test_a_wrong_argument_of_a_loss_is_told_at_its_key(tmp_path, spec, key, told):
    (problem,) = refused(write(tmp_path), f"model.loss_function={spec}")
    assert f": model.loss_function.{key}: " in problem
    assert told in problem


@pytest.mark.parametrize(
    "spec", ["{name: multi_margin, p: 3}", "{name: cross_entropy, label_smoothing: 2}", "{name: huber, delta: -1}"]
)
def test_what_torch_refuses_of_a_loss_is_told_before_training(tmp_path, spec):
    (problem,) = refused(write(tmp_path), f"model.loss_function={spec}")
    assert f"override model.loss_function={spec}: model.loss_function" in problem
