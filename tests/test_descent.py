"""B as the parameter of an optimizer like that of W: Kolen-Pollack and its direct sibling under every optimizer."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from networks import batch, labels, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.testing import assert_close, assert_identical, images, loss_of, net

EXACT = {"rtol": 1e-9, "atol": 1e-12}

#: Every optimizer of torch that takes dense gradients and no closure, with momentum and decay where it has them.
OF_TORCH = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    if name not in ("LBFGS", "SparseAdam")
}
SETTINGS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}


def build(kind, parameters, **settings) -> torch.optim.Optimizer:
    known = inspect.signature(kind).parameters
    return kind(list(parameters), **{k: v for k, v in {**SETTINGS, **settings}.items() if k in known})


def matrices(model) -> list[nn.Parameter]:
    return [model[0].weight, model[2].weight]


def backward(model, step: int = 0) -> None:
    F.cross_entropy(model(batch().double() + step), labels()).backward()


def require_b_as_a_parameter_of_its_own(kind) -> None:
    model = biotorch.convert(mlp().double(), "kp", seed=1)
    alone = [nn.Parameter(model[i].feedback.clone()) for i in (0, 2)]
    optimizer, other = build(kind, matrices(model)), build(kind, alone)
    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        backward(model, step)
        for own, weight in zip(alone, matrices(model), strict=True):
            own.grad = weight.grad.clone()
        optimizer.step()
        other.step()
        for own, i in zip(alone, (0, 2), strict=True):
            torch.testing.assert_close(model[i].feedback, own.detach(), **EXACT)
            assert not torch.equal(model[i].feedback, model[i].weight)


@pytest.mark.parametrize("name", sorted(OF_TORCH))
def test_b_is_stepped_as_a_parameter_of_its_own_with_w_s_gradient(name):
    require_b_as_a_parameter_of_its_own(OF_TORCH[name])


@pytest.mark.parametrize("name", sorted(OF_TORCH))
def test_nothing_of_w_gets_into_b(name):
    """Two networks of other weights, with one B and no gradient: what an optimizer does with W must not show in B."""
    found = []
    for factor in (1.0, -3.0):
        model = biotorch.convert(mlp().double(), "kp", seed=1)
        model[2].weight.data.mul_(factor)
        optimizer = build(OF_TORCH[name], [model[2].weight])
        for _ in range(10):
            model[2].weight.grad = torch.zeros_like(model[2].weight)
            optimizer.step()
        found.append(model[2].feedback)
    assert torch.equal(*found)


class Decaying(torch.optim.Optimizer):
    """Adds the decay to the gradient in place, as torch's own did in its first years."""

    def __init__(self, parameters, lr=0.1, weight_decay=0.1):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.add_(parameter, alpha=group["weight_decay"])
                parameter.sub_(parameter.grad, alpha=group["lr"])


class DecayingBefore(torch.optim.SGD):
    def step(self, closure=None):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.mul_(0.5).add_(parameter, alpha=0.1)
        return super().step(closure)


@pytest.mark.parametrize("kind", [Decaying, DecayingBefore])
def test_an_optimizer_that_writes_into_gradients_steps_b_by_what_they_were(kind):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # torch hooks a class when it is first used
    require_b_as_a_parameter_of_its_own(kind)


def test_gradients_that_a_hook_clears_after_the_step_have_been_seen():
    found = []
    for clears in (False, True):
        torch.manual_seed(0)
        model = biotorch.convert(mlp(), "kp", seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        if clears:
            optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
        F.cross_entropy(model(batch()), labels()).backward()
        optimizer.step()
        found.append(model.state_dict())
    assert_identical(*found)


VARIANTS = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, nesterov=True, weight_decay=0.1),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, dampening=0.3, weight_decay=0.1),
    "maximizing": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True, weight_decay=0.1),
    "a rate in a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, weight_decay=0.1),
    "signs": lambda p: biotorch.batch_manhattan(torch.optim.SGD(p, lr=0.01, weight_decay=0.1)),
    "groups": lambda p: torch.optim.SGD([{"params": p, "lr": 0.02, "weight_decay": 0.1}], lr=0.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_w_and_b_come_together_as_a_weight_without_gradient_shrinks(name):
    """The optimizers here are linear in the decay, or decouple it: W - B is a parameter that only decays."""
    model = biotorch.convert(mlp().double(), "kp", seed=1)
    parting = nn.Parameter((model[2].weight - model[2].feedback).detach())
    optimizer, other = VARIANTS[name](list(model.parameters())), VARIANTS[name]([parting])
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        parting.grad = torch.zeros_like(parting)
        other.step()
    torch.testing.assert_close((model[2].weight - model[2].feedback).detach(), parting.detach(), **EXACT)


def test_a_schedule_and_the_warmup_s_rate_of_zero_hold_for_b(recwarn):
    model = biotorch.convert(mlp().double(), "kp", seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step)
    before = model[2].feedback.clone()
    backward(model)
    optimizer.step()
    assert torch.equal(model[2].feedback, before)
    assert not [each for each in recwarn if "no weight decay" in str(each.message)]
    schedule.step()
    parting = (model[2].weight - model[2].feedback).detach()
    optimizer.step()
    torch.testing.assert_close((model[2].weight - model[2].feedback).detach(), 0.95 * parting, **EXACT)


@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_an_optimizer_that_evaluates_the_loss_itself_is_told(rule):
    model = biotorch.convert(mlp(), rule)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch()), labels())
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="LBFGS evaluates the loss itself"):
        optimizer.step(closure)


def test_an_optimizer_that_cannot_be_built_again_is_told():
    class Odd(torch.optim.SGD):
        def __init__(self, parameters, secret):
            super().__init__(parameters, lr=0.1, weight_decay=0.1)

    model = biotorch.convert(mlp(), "kp")
    optimizer = Odd(model.parameters(), 3)
    F.cross_entropy(model(batch()), labels()).backward()
    with pytest.raises(RuntimeError, match="another Odd cannot be built"):
        optimizer.step()


def test_constrained_weights_and_b_keep_their_relation():
    """B is rescaled as W is: without it B grew to a hundred times W."""
    model = biotorch.convert(mlp().double(), "kp", seed=1, constrain_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(400):
        optimizer.zero_grad()
        backward(model, step % 3)
        optimizer.step()
    assert all(0.8 < ratio < 1.25 for ratio in biotorch.metrics.norm_ratios(model).values())
    assert max(biotorch.metrics.alignment_angles(model).values()) < 20


# The state of B's optimizer ----------------------------------------------------------------------


def trained(model, optimizer, seeds) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(model(images(seed=seed))).backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["kp", "dkp"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_it_is_saved_and_goes_on_with_the_same_bits(rule, kind):
    model = net(rule)
    optimizer = build(kind, model.parameters(), lr=1e-3)
    trained(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed = net(rule)
    other = build(kind, resumed.parameters(), lr=1e-3)
    trained(resumed, other, range(7, 9))  # it has a state of its own, which goes
    states = torch.load(file, weights_only=True)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    twin = copy.deepcopy(model)
    beside = build(kind, twin.parameters(), lr=1e-3)
    beside.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (resumed, other), (twin, beside)):
        trained(each, its, range(3, 6))
    assert_identical(resumed.state_dict(), model.state_dict())
    assert_identical(twin.state_dict(), model.state_dict())


def test_it_belongs_to_one_optimizer():
    """A second optimizer begins anew with W, and so it does with B."""
    model, fresh = net("kp"), net("kp")
    trained(model, build(torch.optim.SGD, model.parameters(), lr=1e-3), range(3))
    weights = {name: value for name, value in model.state_dict().items() if "_state_" not in name}
    fresh.load_state_dict(weights)
    for each in (model, fresh):
        trained(each, build(torch.optim.SGD, each.parameters(), lr=1e-3), range(3, 5))
    assert_identical(model.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("way", ["loaded", "copied", "pickled"])
@pytest.mark.parametrize("kind", sorted(OF_TORCH))
def test_an_optimizer_that_brings_no_state_for_w_begins_anew_with_b(kind, way):
    model = biotorch.convert(mlp(), "kp", seed=1)
    steps(model, build(torch.optim.SGD, matrices(model)), range(3))
    if way == "loaded":
        other = biotorch.convert(mlp(), "kp", seed=1)
        other.load_state_dict(model.state_dict())
    else:
        other = copy.deepcopy(model) if way == "copied" else pickle.loads(pickle.dumps(model))
    bare = biotorch.convert(mlp(), "kp", seed=1)
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if "_state_" not in name})
    for each in (other, bare):
        steps(each, build(OF_TORCH[kind], matrices(each)), range(3, 5))
    assert_identical(other.state_dict(), bare.state_dict())


def steps(model, optimizer, numbers) -> None:
    for number in numbers:
        optimizer.zero_grad()
        F.cross_entropy(model(batch() + number), labels()).backward()
        optimizer.step()


@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_moving_average_of_the_network_begun_before_the_first_step(use_buffers):
    model = biotorch.convert(mlp(), "kp", seed=1)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
    optimizer, seen = torch.optim.AdamW(model.parameters(), lr=0.1), []
    for number in range(3):
        steps(model, optimizer, [number])
        average.update_parameters(model)
        seen.append(model[2].feedback.clone())
    expected = torch.stack(seen).mean(0) if use_buffers else seen[-1]
    torch.testing.assert_close(average.module[2].feedback, expected)


def test_a_state_takes_the_type_of_the_network_that_it_is_loaded_into():
    model, other = biotorch.convert(mlp(), "kp", seed=1), biotorch.convert(mlp().double(), "kp", seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps(model, optimizer, range(301))  # bfloat16 has no 301
    beside = torch.optim.AdamW(other.parameters(), lr=0.01)
    other.load_state_dict(model.state_dict())
    beside.load_state_dict(optimizer.state_dict())
    backward(other)
    beside.step()
    kept = other[2].feedback_states["weight"]
    assert (kept["exp_avg"].dtype, int(kept["step"])) == (torch.float64, 302)
    model.bfloat16()
    kept = model[2].feedback_states["weight"]
    assert (kept["exp_avg"].dtype, int(kept["step"])) == (torch.bfloat16, 301)


def test_a_state_that_no_state_dict_can_hold_is_told():
    class Listing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["factors"] = [parameter.detach() * 0]

    model = biotorch.convert(mlp(), "kp")
    steps(model, Listing(matrices(model), lr=0.1, weight_decay=0.1), range(2))
    with pytest.raises(TypeError, match="keeps list 'factors' for B"):
        model.state_dict()


def test_another_rule_takes_it_away():
    for other in ("wm", "fa", None):
        model = net("kp")
        trained(model, build(torch.optim.SGD, model.parameters(), lr=1e-3), range(2))
        assert any("_state_" in name for name in model.state_dict())
        model = biotorch.revert(model) if other is None else biotorch.convert(model, other)
        assert not any("_state_" in name for name in model.state_dict())


@pytest.mark.parametrize("rule", ["kp", "dkp", "wm"])
def test_a_compiled_step_of_the_optimizer_does_the_same(rule):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = biotorch.convert(mlp(), rule, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
        if compiled:
            optimizer.step = torch.compile(optimizer.step)
        steps(model, optimizer, range(3))
        found.append(model.state_dict())
    assert_close(*found, rtol=1e-5, atol=1e-6)


# Once per applied update -------------------------------------------------------------------------


class Inherited(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


class Listing(torch.optim.Optimizer):
    """Holds optimizers in a list, as some multi-optimizers do."""

    def __init__(self, *inner, every=1):
        super().__init__([p for each in inner for group in each.param_groups for p in group["params"]], {})
        self.inner, self.calls, self.every = list(inner), 0, every

    def step(self, closure=None):
        self.calls += 1
        if self.calls % self.every == 0:
            for each in self.inner:
                each.step()


@pytest.mark.parametrize("rule", ["kp", "wm", "sa", "brsf", "dkp", "ia"])
@pytest.mark.parametrize("kind", ["inherited", "listed", "every second"])
def test_optimizers_within_optimizers_update_once(rule, kind):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # torch hooks a class when it is first used
    model, plain = net(rule), net(rule)
    settings = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}
    every = 2 if kind == "every second" else 1
    if kind == "inherited":
        optimizer = Inherited(model.parameters(), **settings)
    else:
        halves = list(model.features.parameters()), list(model.head.parameters())
        optimizer = Listing(*(torch.optim.SGD(half, **settings) for half in halves), every=every)
    trained(model, optimizer, range(2 * every))
    trained(plain, torch.optim.SGD(plain.parameters(), **settings), range(every - 1, 2 * every, every))
    assert_identical(model.state_dict(), plain.state_dict())


def test_a_step_that_failed_is_no_obstacle_to_the_next():
    class Failing(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise ArithmeticError
            return super().step(closure)

    model = net("sa")
    optimizer = Failing(model.parameters(), lr=0.1)
    loss_of(model(images())).backward()
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.fails = False
    optimizer.step()
    assert model.head.feedback_draws == 1


# Under a loss scaler -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["kp", "dkp", "drtp", "sdfa"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_changes_nothing(rule, fused):
    """Its factor is a power of two: the same bits."""
    models, y = [biotorch.convert(mlp(), rule, seed=1) for _ in range(2)], labels(5)
    models[1].load_state_dict(models[0].state_dict())
    for model, scale in zip(models, (None, 1024.0), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
        for step in range(3):
            optimizer.zero_grad()
            with biotorch.targets(y, loss_scale=scaler.get_scale()):
                loss = F.cross_entropy(model(batch(5) + step), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, rtol=1e-6, atol=1e-7)


# Direct Kolen-Pollack ----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"maximize": True}, {}], ids=str)
def test_a_direct_b_is_stepped_as_a_parameter_of_its_own(settings):
    model = biotorch.convert(mlp().double(), "dkp", seed=1)
    alone = nn.Parameter(model[2].feedback.clone())
    kind = {"lr": 0.1, "weight_decay": 0.05, **settings}
    optimizer, other = torch.optim.SGD(model.parameters(), **kind), torch.optim.SGD([alone], **kind)
    for step in range(3):
        optimizer.zero_grad()
        x = batch(5).double() + step
        hidden = model[1](model[0](x)).detach()
        output = model(x)
        loss = F.cross_entropy(output, labels(5))
        (e,) = torch.autograd.grad(loss, output, retain_graph=True)
        loss.backward()
        alone.grad = e.T @ hidden
        optimizer.step()
        other.step()
        torch.testing.assert_close(model[2].feedback, alone.detach(), **EXACT)


def test_rate_and_decay_of_a_direct_b_can_be_its_own():
    model = biotorch.convert(mlp().double(), "dkp", seed=1, feedback_rate=0.5, feedback_decay=0.25)
    before = model[2].feedback.clone()
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(model[2].feedback, (1 - 0.5 * 0.25) * before, **EXACT)


class Thrice(nn.Module):
    """One layer, run three times; `checkpointed` computes it again in the backward."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.first(x).tanh()
        for _ in range(3):
            run = lambda x: self.again(x).tanh()  # noqa: E731
            x = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False) if self.checkpointed else run(x)
        return self.head(x)


def test_what_checkpointing_computes_again_is_counted_once():
    found = []
    for checkpointed in (False, True):
        model = biotorch.convert(Thrice(checkpointed).double(), "dkp", seed=1)
        loss_of(model(batch().double())).backward()
        found.append(model.again.feedback.grad)
    torch.testing.assert_close(*found, **EXACT)


def test_a_frozen_layer_does_not_listen():
    model = biotorch.convert(mlp(), "dkp")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not model(batch()).requires_grad
