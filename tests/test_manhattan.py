"""Batch Manhattan: the sign of the gradient, under any optimizer."""

import pytest
import torch
from networks import batch, labels, mlp, state
from torch.nn import functional as F

import biotorch


def step(model, optimizer) -> dict[str, torch.Tensor]:
    """One update; the gradients before it."""
    optimizer.zero_grad()
    F.cross_entropy(model(batch()), labels()).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    return before


def test_a_step_of_gradient_descent_is_the_rate_times_the_sign():
    model = biotorch.convert(mlp(), "fa")
    before = state(model)
    gradients = step(model, biotorch.batch_manhattan(torch.optim.SGD(model.parameters(), lr=0.01)))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * gradients[name].sign())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_any_optimizer_sees_signs_alone(kind):
    """It moves as it would for gradients a thousand times as large."""
    models = [biotorch.convert(mlp(), "fa", seed=1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, factor in zip(models, (1, 1000), strict=True):
        optimizer = biotorch.batch_manhattan(kind(model.parameters(), lr=0.01, weight_decay=0.1))
        for _ in range(1):
            optimizer.zero_grad()
            (F.cross_entropy(model(batch()), labels()) * factor).backward()
            optimizer.step()
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_momentum_is_that_of_the_signs():
    model = biotorch.convert(mlp(), "usf")
    optimizer = biotorch.batch_manhattan(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    signs = [step(model, optimizer)["0.weight"].sign() for _ in range(2)]
    torch.testing.assert_close(optimizer.state[model[0].weight]["momentum_buffer"], 0.9 * signs[0] + signs[1])


@pytest.mark.parametrize("named", [False, True])
def test_a_closure_s_gradients_are_signed_too(named):
    model = biotorch.convert(mlp(), "fa")
    before, seen = state(model), {}
    optimizer = biotorch.batch_manhattan(torch.optim.SGD(model.parameters(), lr=0.01))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch()), labels())
        loss.backward()
        seen.update({name: p.grad.sign() for name, p in model.named_parameters()})
        return loss

    loss = optimizer.step(closure=closure) if named else optimizer.step(closure)
    assert loss.item() > 0
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * seen[name])


def test_an_embedding_s_sparse_gradient_is_signed():
    table = torch.nn.Embedding(5, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = biotorch.batch_manhattan(torch.optim.SparseAdam(list(table.parameters()), lr=0.1))
    table(torch.tensor([1, 1, 3])).square().sum().backward()
    optimizer.step()
    moved = (table.weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.tensor([0, 0.1, 0, 0.1, 0]).unsqueeze(1).expand(5, 2), atol=1e-5, rtol=0)
    assert table.weight.grad.coalesce().values().abs().eq(1).all()


def test_parameters_without_a_gradient_are_left_alone():
    model = biotorch.convert(mlp(), "fa")
    biotorch.batch_manhattan(torch.optim.SGD(model.parameters(), lr=0.1)).step()
    assert all(p.grad is None for p in model.parameters())


def test_a_fused_optimizer_that_divides_by_a_loss_scale_makes_the_same_step():
    model = biotorch.convert(mlp(), "fa")
    before = state(model)
    optimizer = biotorch.batch_manhattan(torch.optim.SGD(model.parameters(), lr=0.01, fused=True))
    (F.cross_entropy(model(batch()), labels()) * 1024).backward()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    signs = {name: p.grad.sign() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * signs[name])


def test_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="takes a torch optimizer, got list"):
        biotorch.batch_manhattan([])
