"""What follows an optimizer step: brsf draws R again, others learn, W is rescaled; once per applied update."""

import copy
import io
import pickle

import pytest
import torch
from rule_names import RULES
from torch.utils.checkpoint import checkpoint

import biotorch
from biotorch.testing import LAYER_NAMES, assert_identical, images, loss_of, net

pytestmark = pytest.mark.usefixtures("targets")

REDRAWING = [name for name in RULES if biotorch.rules.get(name).has_update()]
redrawing = pytest.mark.parametrize("rule", REDRAWING)


def test_these_rules_change_b_after_each_update():
    assert REDRAWING == ["brsf", "wm", "ia", "sa", "sham"]


def feedback(model) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).feedback.clone() for name in LAYER_NAMES}


def changed(model, before) -> list[str]:
    return [name for name, value in feedback(model).items() if not torch.equal(value, before[name])]


def draws(model) -> set[int]:
    return {model.get_submodule(name).feedback_draws for name in LAYER_NAMES}


def sgd(model) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def step(model, optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    loss_of(model(images(seed=seed))).backward()
    optimizer.step()


@redrawing
def test_every_step_redraws_every_layer(rule):
    model = net(rule)
    optimizer, seen = sgd(model), [feedback(model)]
    for expected in (1, 2, 3):
        step(model, optimizer)
        assert changed(model, seen[-1]) == LAYER_NAMES
        assert draws(model) == {expected}
        seen.append(feedback(model))
    assert changed(model, seen[0]) == LAYER_NAMES  # no cycle


def test_a_redraw_has_the_distribution_of_the_initializer():
    layer = biotorch.convert(torch.nn.Sequential(torch.nn.Linear(300, 200)), "brsf", init="xavier")[0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    bound = (6 / 500) ** 0.5
    assert 0 <= layer.feedback.min() < 0.01 * bound
    assert 0.99 * bound < layer.feedback.max() <= bound
    assert layer.feedback.mean().item() == pytest.approx(bound / 2, rel=0.02)


@redrawing
@pytest.mark.parametrize("training", [True, False])
def test_neither_forward_nor_backward_redraws(rule, training):
    model = net(rule).train(training)
    before = feedback(model)
    with torch.no_grad():
        model(images())
    for seed in range(3):
        loss_of(model(images(seed=seed))).backward()
    assert not changed(model, before)


@redrawing
def test_gradient_accumulation_redraws_once_at_its_end(rule):
    model = net(rule)
    optimizer = sgd(model)
    for seed in range(3):
        loss_of(model(images(seed=seed))).backward()
    optimizer.step()
    assert draws(model) == {1}


@redrawing
def test_evaluation_between_steps_changes_no_draw(rule):
    models = net(rule), net(rule)
    for model, evaluates in zip(models, (False, True), strict=True):
        optimizer = sgd(model)
        for seed in range(2):
            step(model, optimizer, seed)
            if evaluates:
                with torch.no_grad():
                    model.eval()(images(seed=9))
                loss_of(model(images(seed=9)))  # an attack's forward: with gradients, no step
                model.train()
    assert_identical(*(model.state_dict() for model in models))


@redrawing
def test_checkpointing_changes_no_draw(rule):
    models = net(rule), net(rule)
    for model, checkpoints in zip(models, (False, True), strict=True):
        optimizer = sgd(model)
        for seed in range(2):
            optimizer.zero_grad()
            x = images(seed=seed)
            loss_of(checkpoint(model, x, use_reentrant=False) if checkpoints else model(x)).backward()
            optimizer.step()
    assert_identical(*(model.state_dict() for model in models))


class Wrapper(torch.optim.Optimizer):
    """As Lookahead, or a scaler's wrapper: an optimizer around another one; `every` n-th step is passed on."""

    def __init__(self, inner: torch.optim.Optimizer, every: int = 1) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.every, self.calls = inner, every, 0

    def step(self, closure=None):
        self.calls += 1
        return self.inner.step(closure) if self.calls % self.every == 0 else None


@redrawing
def test_a_wrapper_optimizer_redraws_once_per_step(rule):
    wrapped, plain = net(rule), net(rule)
    outer, inner = Wrapper(sgd(wrapped)), sgd(plain)
    for seed in range(2):
        step(wrapped, outer, seed)
        step(plain, inner, seed)
    assert draws(wrapped) == {2}
    assert_identical(wrapped.state_dict(), plain.state_dict())


@redrawing
def test_a_wrapper_that_passes_on_every_second_step_redraws_at_those(rule):
    """Gradient accumulation inside the optimizer: a step that changed no weight is no update."""
    model = net(rule)
    optimizer = Wrapper(sgd(model), every=2)
    seen = []
    for seed in range(4):
        loss_of(model(images(seed=seed))).backward()
        optimizer.step()
        seen.append(draws(model))
    assert seen == [{0}, {1}, {1}, {2}]


@redrawing
def test_a_step_that_a_gradient_scaler_skipped_redraws_nothing(rule):
    """A fused optimizer runs its step, and the hooks, even where it found infinities."""
    model = net(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    weight = model.head.weight.detach().clone()
    seen = []
    for found_inf in (1.0, 0.0):
        loss_of(model(images())).backward()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found_inf)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # as GradScaler.step does
        seen.append((draws(model), torch.equal(model.head.weight, weight)))
    assert seen == [({0}, True), ({1}, False)]


@redrawing
@pytest.mark.parametrize("finite", [True, False])
def test_a_gradient_scaler_s_own_step_redraws_when_it_updates(rule, finite):
    model = net(rule)
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(loss_of(model(images())) * (1 if finite else float("inf"))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert draws(model) == {int(finite)}


@redrawing
def test_only_the_layers_an_optimizer_holds_redraw(rule):
    model = net(rule)
    before = feedback(model)
    step(model, torch.optim.SGD(model.head.parameters(), lr=0.01))
    assert changed(model, before) == ["head"]


@redrawing
@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_every_optimizer_of_torch_redraws(rule, optimizer_type):
    model = net(rule)
    step(model, optimizer_type(model.parameters(), lr=1e-3))
    assert draws(model) == {1}


@redrawing
def test_a_closure_run_many_times_in_one_step_redraws_once(rule):
    model = net(rule)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(images()))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert draws(model) == {1}


@redrawing
def test_after_loading_a_state_both_models_draw_the_same(rule):
    model, resumed = net(rule), biotorch.convert(net("fa"), rule, seed=99)
    optimizer = sgd(model)
    for seed in range(3):
        step(model, optimizer, seed)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    other = sgd(resumed)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(resumed, other, seed)
    assert draws(resumed) == {6}
    assert_identical(resumed.state_dict(), model.state_dict())


@redrawing
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_follows_its_own_optimizer(rule, copied):
    model = net(rule)
    twin = copied(model)
    before = feedback(model)
    step(twin, sgd(twin))
    assert not changed(model, before)
    assert changed(twin, before) == LAYER_NAMES
    step(model, sgd(model))
    assert_identical(twin.state_dict(), model.state_dict())  # the same draw


@redrawing
def test_layers_that_share_w_share_the_redrawn_b(rule):
    first, second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    second.weight = first.weight
    model = biotorch.convert(torch.nn.Sequential(first, torch.nn.Tanh(), second), rule)
    optimizer = sgd(model)
    for _ in range(3):
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        assert first.feedback is second.feedback


@pytest.mark.parametrize(
    "rule", [name for name in RULES if name not in REDRAWING and not biotorch.rules.get(name).learns]
)
def test_no_other_rule_s_feedback_ever_changes(rule):
    model = net(rule)
    before = {name: model.get_submodule(name).feedback for name in LAYER_NAMES}
    before = {name: None if value is None else value.clone() for name, value in before.items()}
    optimizer = sgd(model)
    for seed in range(3):
        step(model, optimizer, seed)
    for name, value in before.items():
        now = model.get_submodule(name).feedback
        assert now is value is None or torch.equal(now, value)


@redrawing
def test_a_step_without_a_gradient_is_no_update(rule):
    model = net(rule)
    sgd(model).step()
    assert draws(model) == {0}
