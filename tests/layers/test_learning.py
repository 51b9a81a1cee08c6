"""B that learns is a parameter with the gradient of its W; a B that would not learn is told."""

import gc
import warnings

import pytest
import torch
from learned_feedback import EXACT, backward, kp
from networks import batch, labels, mlp
from rule_names import without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.testing import loss_of

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


@without_decay
@pytest.mark.parametrize("rule", ["kp", "dkp"])
@pytest.mark.parametrize("compiled", [False, True])
def test_groups_that_leave_b_out_are_told(rule, compiled):
    model = biotorch.convert(mlp(), rule)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    own = [parameter for name, parameter in model.named_parameters() if "feedback" not in name]
    optimizer = torch.optim.Adam(own, lr=0.01, fused=True)  # which no version counter shows
    with pytest.raises(RuntimeError, match="requires_grad_"):
        steps(run, optimizer, 4)


@without_decay
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
