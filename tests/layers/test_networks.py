"""All parameters of the feedback of a network, and clipping without them."""

import pytest
import torch
from learned_feedback import EXACT, backward, kp
from networks import mlp
from torch import nn

import biotorch
from biotorch.testing import net


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
