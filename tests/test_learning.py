"""B that learns is an ordinary parameter: the user's optimizer, whichever it is, does with it what it does with W."""

import copy
import gc
import inspect
import io
import warnings

import pytest
import torch
from networks import batch, labels, mlp
from timm.utils import ModelEmaV2
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn import functional as F

import biotorch
from biotorch.rules import registry
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


def pair(model) -> list[nn.Parameter]:
    return [model[2].weight, model[2].feedback]


def kp(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return biotorch.convert(mlp().double(), "kp", seed=1, **options)


def backward(model, step: int = 0) -> None:
    F.cross_entropy(model(batch().double() + step), labels()).backward()


# The gradient of B -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["backward", "inputs", "autograd.grad", "compiled"])
def test_w_and_b_have_one_gradient_and_never_one_memory(way):
    """Under autograd.grad, too: whoever puts its results into `.grad` and clips in place would clip twice."""
    model, parameters = kp(), None
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if way == "compiled" else model
    loss = F.cross_entropy(run(batch().double()), labels())
    parameters = list(model.parameters())
    if way == "autograd.grad":
        found = torch.autograd.grad(loss, parameters)
    else:
        loss.backward(inputs=parameters if way == "inputs" else None)
        found = [parameter.grad for parameter in parameters]
    named = dict(zip([name for name, _ in model.named_parameters()], found, strict=True))
    for layer in ("0", "2"):  # the first has an input that needs no gradient
        w, b = named[f"{layer}.weight"], named[f"{layer}.feedback"]
        assert torch.equal(w, b)
        assert w.abs().sum() > 0
    assert len({each.untyped_storage().data_ptr() for each in found}) == len(found)


def test_a_penalty_on_w_does_not_reach_b():
    plain, penalised = kp(), kp()
    backward(plain)
    loss = F.cross_entropy(penalised(batch().double()), labels())
    (
        loss + sum(parameter.square().sum() for name, parameter in penalised.named_parameters() if "weight" in name)
    ).backward()
    assert torch.equal(plain[2].feedback.grad, penalised[2].feedback.grad)
    assert not torch.equal(plain[2].weight.grad, penalised[2].weight.grad)


def by_scaler(model, x, y):
    (F.cross_entropy(model(x), y) * 1024).backward()
    for parameter in model.parameters():
        parameter.grad.div_(1024)


def by_parts(model, x, y):
    """Gradients taken away after each micro-batch (DeepSpeed, Megatron's main_grad, FSDP2)."""
    taken = [0] * len(list(model.parameters()))
    for part, answers in zip(x.split(2), y.split(2), strict=True):
        (F.cross_entropy(model(part), answers, reduction="sum") / len(y)).backward()
        taken = [sum_ + parameter.grad for sum_, parameter in zip(taken, model.parameters(), strict=True)]
        model.zero_grad()
    for parameter, gradient in zip(model.parameters(), taken, strict=True):
        parameter.grad = gradient


def by_grad(model, x, y):
    parameters = list(model.parameters())
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(F.cross_entropy(model(x), y), parameters), strict=True
    ):
        parameter.grad = gradient


def by_inputs(model, x, y):
    F.cross_entropy(model(x), y).backward(inputs=list(model.parameters()))


@pytest.mark.parametrize("rule", ["kp", "dkp"])
@pytest.mark.parametrize("way", [by_scaler, by_parts, by_grad, by_inputs])
def test_however_gradients_are_taken_b_has_its_own(rule, way):
    plain, other = (biotorch.convert(mlp().double(), rule, seed=1) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    x, y = batch(6).double(), labels(6)
    F.cross_entropy(plain(x), y).backward()
    way(other, x, y)
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, **EXACT, msg=name)


@pytest.mark.parametrize("rule", ["kp", "dkp", "drtp", "sdfa"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_changes_nothing(rule, fused):
    """Its factor is a power of two: the same bits. Nobody tells `kp` and `dkp` of it."""
    models, y = [biotorch.convert(mlp(), rule, seed=1) for _ in range(2)], labels(5)
    models[1].load_state_dict(models[0].state_dict())
    for model, scale in zip(models, (None, 1024.0), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
        for step in range(3):
            optimizer.zero_grad()
            told = {"loss_scale": scaler.get_scale()} if rule in ("drtp", "sdfa") else {}
            with biotorch.targets(y, **told):
                loss = F.cross_entropy(model(batch(5) + step), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_checkpointing_and_repeated_layers_add_up():
    found = []
    for checkpointed in (False, True):
        model = biotorch.convert(Thrice(checkpointed).double(), "dkp", seed=1)
        loss_of(model(batch().double())).backward()
        found.append(model.again.feedback.grad)
    torch.testing.assert_close(*found, **EXACT)


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


# Optimizers --------------------------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    def __init__(self, inner, k=2, alpha=0.5):
        super().__init__(inner.param_groups, {})
        self.inner, self.k, self.alpha, self.calls = inner, k, alpha, 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.calls += 1
        if self.calls % self.k == 0:
            for p, slow in zip((p for g in self.param_groups for p in g["params"]), self.slow, strict=True):
                p.copy_(slow.lerp_(p, self.alpha))


class Counting(torch.optim.Optimizer):
    """Adam that counts steps in the group, as apex's FusedAdam and schedule-free optimizers do."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = t = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad**2, 0.001)
                p.sub_(group["lr"] * state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8))


class Editing(torch.optim.Optimizer):
    """Makes of each gradient something of its own parameter's, in place, as LARS and old decays do."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(p, alpha=0.1).mul_(p.norm() / p.grad.norm())
                p.data.sub_(p.grad, alpha=group["lr"])  # as nobody should, and old ones do


def signs_after_the_first_step(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.01, weight_decay=0.1)
    optimizer.calls = 0

    def count(optimizer, *_):
        optimizer.calls += 1
        if optimizer.calls == 1:
            biotorch.batch_manhattan(optimizer)

    optimizer.register_step_post_hook(count)
    return optimizer


OPTIMIZERS = {
    **{name: lambda p, kind=kind: build(kind, p) for name, kind in OF_TORCH.items()},
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, nesterov=True, weight_decay=0.1),
    "maximizing": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True, weight_decay=0.1),
    "a rate in a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, weight_decay=0.1),
    "signs": lambda p: biotorch.batch_manhattan(torch.optim.SGD(p, lr=0.01, weight_decay=0.1)),
    "signs from the second step on": signs_after_the_first_step,
    "Lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=0.1, weight_decay=0.1)),
    "counting in the group": Counting,
    "editing gradients": Editing,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_w_and_b_are_two_parameters_with_one_gradient(name):
    """To the bit as a reference of two plain parameters: whatever the optimizer does, nothing of W gets into B."""
    model = kp()
    plain = [nn.Parameter(each.detach().clone()) for each in pair(model)]
    optimizer, other = OPTIMIZERS[name](pair(model)), OPTIMIZERS[name](plain)
    for step in range(5):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        backward(model, step)
        for own, parameter in zip(plain, pair(model), strict=True):
            own.grad = model[2].weight.grad.clone()
            assert torch.equal(parameter.grad, own.grad)
        optimizer.step()
        other.step()
        for own, parameter in zip(plain, pair(model), strict=True):
            assert torch.equal(parameter, own)
    assert not torch.equal(*pair(model))


def difference(model) -> torch.Tensor:
    return (model[2].weight - model[2].feedback).detach()


def test_under_adamw_w_and_b_come_together_by_the_decay_alone():
    model = kp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.5)
    for step in range(4):
        before = difference(model)
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        torch.testing.assert_close(difference(model), (1 - 0.02 * 0.5) * before, **EXACT)


def by_masters(model):
    """Mixed precision with fp32 masters, as apex, DeepSpeed and Megatron keep them."""
    masters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1, weight_decay=0.2)

    def step():
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.clone()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)

    return step


def by_hand(model):
    def step():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * (parameter.grad + 0.2 * parameter))

    return step


def by_two_optimizers(model):
    feedback = list(biotorch.feedback_parameters(model))
    weights = [each for each in model.parameters() if not any(each is other for other in feedback)]
    optimizers = [torch.optim.SGD(each, lr=0.1, weight_decay=0.2) for each in (weights, feedback)]
    return lambda: [each.step() for each in optimizers]


@pytest.mark.parametrize("way", [by_masters, by_hand, by_two_optimizers])
@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_whoever_makes_the_updates_makes_those_of_b(way, rule):
    model, plain = (biotorch.convert(mlp().double(), rule, seed=1) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    step, optimizer = way(model), torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=0.2)
    for number in range(5):
        for each in (model, plain):
            each.zero_grad()
            backward(each, number)
        step()
        optimizer.step()
    assert_close(model.state_dict(), plain.state_dict(), **EXACT)


def test_constrained_weights_and_b_keep_their_relation():
    """B is rescaled as W is: without it B grew to a hundred times W."""
    model = kp(constrain_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(400):
        optimizer.zero_grad()
        backward(model, step % 3)
        optimizer.step()
    assert all(0.8 < ratio < 1.25 for ratio in biotorch.metrics.norm_ratios(model).values())
    assert max(biotorch.metrics.alignment_angles(model).values()) < 20


@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_an_optimizer_that_evaluates_the_loss_itself_takes_b_along(rule):
    model = biotorch.convert(mlp().double(), rule, seed=1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    before = model[2].feedback.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch().double()), labels())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(model[2].feedback, before)


# A B that would not learn ------------------------------------------------------------------------


def test_an_optimizer_built_before_the_conversion_is_told():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    biotorch.convert(model, "kp")
    with pytest.raises(RuntimeError, match=r"^0: W learns but its B does not.*after `convert`.*feedback_parameters"):
        steps(model, optimizer, 3)


def steps(run, optimizer, n: int) -> None:
    for number in range(n):
        optimizer.zero_grad()
        F.cross_entropy(run(batch() + number), labels()).backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["kp", "dkp"])
@pytest.mark.parametrize("compiled", [False, True])
def test_groups_that_leave_b_out_are_told(rule, compiled):
    model = biotorch.convert(mlp(), rule)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    own = [parameter for name, parameter in model.named_parameters() if "feedback" not in name]
    optimizer = torch.optim.Adam(own, lr=0.01, fused=True)  # which no version counter shows
    with pytest.raises(RuntimeError, match="requires_grad_"):
        steps(run, optimizer, 4)


def test_b_that_is_rescaled_with_w_has_not_learned():
    model = kp(constrain_weights=True)
    own = [parameter for name, parameter in model.named_parameters() if "feedback" not in name]
    with pytest.raises(RuntimeError, match="W learns but its B does not"):
        steps(model.float(), torch.optim.SGD(own, lr=0.1), 4)


def test_b_that_a_dead_optimizer_held_is_told():
    model = biotorch.convert(mlp(), "kp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    steps(model, optimizer, 2)
    del optimizer
    gc.collect()
    own = [parameter for name, parameter in model.named_parameters() if "feedback" not in name]
    with pytest.raises(RuntimeError, match="W learns but its B does not"):
        steps(model, torch.optim.SGD(own, lr=0.1), 4)


def frozen_b(model):
    for parameter in biotorch.feedback_parameters(model):
        parameter.requires_grad_(False)
    return [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)]


def alternating(model):
    feedback = list(biotorch.feedback_parameters(model))
    weights = [each for each in model.parameters() if not any(each is other for other in feedback)]
    w, b = (torch.optim.SGD(each, lr=0.1) for each in (weights, feedback))
    return [w, w, w, b]


def standing_still(model):
    return [torch.optim.SGD([p for n, p in model.named_parameters() if "feedback" not in n], lr=0.0)]


def of_the_head(model):
    return [torch.optim.SGD(model[2].parameters(), lr=0.1)]


@pytest.mark.parametrize("way", [frozen_b, alternating, standing_still, of_the_head])
@pytest.mark.filterwarnings("ignore:kp. the optimizer has no weight decay")
def test_what_is_meant_raises_nothing(way):
    model = kp()
    optimizers = way(model)
    before = model[2].feedback.detach().clone()
    for step in range(12):
        model.zero_grad()
        backward(model, step)
        optimizers[step % len(optimizers)].step()
    assert torch.equal(model[2].feedback, before) == (way in (frozen_b, standing_still))


@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_a_frozen_w_freezes_its_b(rule):
    model = biotorch.convert(mlp().double(), rule, seed=1)
    model[0].weight.requires_grad_(False)
    backward(model)
    assert model[0].feedback.grad is None
    assert model[2].feedback.grad is not None
    waiting = [name for name, parameter in model[0].named_parameters() if parameter.requires_grad]  # as DDP asks
    assert waiting == ["bias"]
    model[0].weight.requires_grad_(True)
    backward(model)
    assert model[0].feedback.grad is not None
    frozen = mlp()
    frozen[0].weight.requires_grad_(False)
    biotorch.convert(frozen, rule)
    assert [name for name, parameter in frozen[0].named_parameters() if parameter.requires_grad] == ["bias"]


def test_a_w_that_an_embedding_shares_warns():
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["embedding"].weight
    with pytest.warns(biotorch.ConversionWarning, match=r"head shares its W with embedding \(Embedding\)"):
        biotorch.convert(model, "kp")


def test_without_decay_kp_warns_once_for_each_layer():
    model = biotorch.convert(mlp(), "kp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        steps(model, optimizer, 4)
    told = [str(each.message) for each in told if "no weight decay for" in str(each.message)]
    assert [message.split(" for ")[1].split(",")[0] for message in told] == ["0", "2", "4"]


# Groups and clipping -----------------------------------------------------------------------------


def test_feedback_parameters_are_the_b_that_learn_each_once():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    tied = biotorch.convert(nn.Sequential(first, nn.Tanh(), second), "kp")
    assert [id(each) for each in biotorch.feedback_parameters(tied)] == [id(first.feedback)]
    assert not list(biotorch.feedback_parameters(net("fa")))
    assert not list(biotorch.feedback_parameters(net("wm")))
    assert len(list(biotorch.feedback_parameters(net("dkp")))) == 4


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_clipping_takes_the_norm_of_the_network_s_own_gradients(norm_type, limit):
    model, plain = kp(), biotorch.convert(mlp().double(), "fa", seed=1)
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        backward(each)
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), limit, norm_type)
    assert torch.equal(biotorch.clip_grad_norm_(model, limit, norm_type), expected)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, **EXACT)
    torch.testing.assert_close(model[2].feedback.grad, model[2].weight.grad, **EXACT)
    assert torch.equal(torch.nn.utils.clip_grad_norm_(net("kp").parameters(), 1.0), torch.tensor(0.0))


def test_clipping_tells_of_a_norm_that_is_not_finite():
    model = kp()
    backward(model)
    model[0].weight.grad[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        biotorch.clip_grad_norm_(model, 1.0, error_if_nonfinite=True)


# States ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["kp", "dkp", "fa"])
def test_a_state_has_no_key_but_b(rule):
    model, plain = net(rule), net("backpropagation")
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    added = set(model.state_dict()) - set(plain.state_dict())
    assert {name.rpartition(".")[2] for name in added} == {"feedback"}


def step(model, optimizer, seeds=(0,)) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(model(images(seed=seed))).backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["kp", "dkp"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_training_goes_on_with_the_same_bits(rule, kind):
    model = net(rule)
    optimizer = build(kind, model.parameters(), lr=1e-3)
    step(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed = net(rule)
    other = build(kind, resumed.parameters(), lr=1e-3)
    step(resumed, other, range(7, 9))  # it has a state of its own, which goes
    states = torch.load(file, weights_only=True)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    twin = copy.deepcopy(model)
    beside = build(kind, twin.parameters(), lr=1e-3)
    beside.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (resumed, other), (twin, beside)):
        step(each, its, range(3, 6))
    assert_identical(resumed.state_dict(), model.state_dict())
    assert_identical(twin.state_dict(), model.state_dict())


def test_a_state_from_before_b_was_a_parameter_is_read():
    """It had the momenta of B's own optimizer beside B, and numbers of draws."""
    model, other = net("kp"), net("kp")
    step(other, torch.optim.SGD(other.parameters(), lr=0.1))
    old = dict(other.state_dict())
    for name in ("features.0", "features.2", "features.5", "head"):
        old[f"{name}.feedback_draws"] = torch.tensor([7, 3])
        old[f"{name}.feedback_state_momentum_buffer"] = old[f"{name}.feedback"] * 0
    model.load_state_dict(old)
    assert_identical(model.state_dict(), other.state_dict())


def test_averages_meet_the_same_tensors_before_and_after_the_first_step():
    model = biotorch.convert(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False)), "kp")
    average, swa = ModelEmaV2(model, decay=0.9), torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        average.update(model)
        swa.update_parameters(model)
        expected = {name: 0.9 * expected[name] + 0.1 * value for name, value in model.state_dict().items()}
        seen.append(model[2].feedback.detach().clone())
    assert_close(average.module.state_dict(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(swa.module[2].feedback.detach(), torch.stack(seen).mean(0))


@pytest.mark.parametrize("rule", ["kp", "dkp", "brsf"])
def test_distributed_checkpoints_take_and_give_the_state(rule):
    model, other = net(rule), net(rule)
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), range(2))
    found = get_model_state_dict(model)
    assert_identical(found, model.state_dict())
    set_model_state_dict(other, found)
    assert_identical(other.state_dict(), model.state_dict())


# B of several tensors ----------------------------------------------------------------------------


@pytest.fixture
def factorised():
    @biotorch.rules.register("factorised", transports="nothing")
    class Factorised(biotorch.rules.FeedbackRule):
        learns = True

        def initial_feedback(self, weight, blank, generator):
            out, rest = len(blank), blank[0].numel()
            up, down = (torch.randn(shape, generator=generator).to(blank) for shape in ((out, 2), (2, rest)))
            return {"up": up, "down": down}

        def feedback(self, weight, state):
            return (state["up"] @ state["down"]).view(weight.shape)

    yield "factorised"
    del registry._REGISTRY["factorised"]


def test_a_rule_of_one_s_own_may_learn_b_as_a_product(factorised):
    """The gradient of B = up @ down is W's; each factor has its part of it, and the two are parameters of their own."""
    model = biotorch.convert(mlp().double(), factorised, seed=1)
    layer = model[2]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "feedback_up", "feedback_down"]
    backward(model)
    up, down, dw = layer.feedback_up, layer.feedback_down, layer.weight.grad
    torch.testing.assert_close(up.grad, dw @ down.detach().T, **EXACT)
    torch.testing.assert_close(down.grad, up.detach().T @ dw, **EXACT)
    torch.testing.assert_close(layer.effective_feedback, (up @ down).detach(), **EXACT)
    assert len(list(biotorch.feedback_parameters(model))) == 2 * len(biotorch.layers.connections(model))
    other = biotorch.convert(mlp().double(), factorised, seed=2)
    other.load_state_dict(model.state_dict())
    assert_identical(copy.deepcopy(other).state_dict(), model.state_dict())
    assert set(biotorch.audit(model, batch().double()).layers.values()) == {"nothing"}
    assert not any("feedback" in name for name in biotorch.revert(model).state_dict())


@pytest.mark.parametrize(("reads", "verdict"), [(torch.sign, "signs"), (lambda w: w, "weights")])
def test_the_audit_finds_what_a_learned_b_reads_of_w(reads, verdict):
    """B = M f(W): the gradient of M and what reaches upstream are made of it."""

    @biotorch.rules.register("reading", transports=verdict)
    class Reading(biotorch.rules.FeedbackRule):
        learns = True

        def initial_feedback(self, weight, blank, generator):
            return {"magnitude": torch.rand(blank.shape, generator=generator).to(blank)}

        def feedback(self, weight, state):
            return state["magnitude"] * reads(weight)

    try:
        found = biotorch.audit(biotorch.convert(mlp(), "reading"), batch())
    finally:
        del registry._REGISTRY["reading"]
    assert set(found.layers.values()) == {verdict}
