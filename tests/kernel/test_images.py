"""Outputs with positions in space: each place hears its own error, a dense B projects the whole output."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from rule_names import PLAIN_DIRECT
from torch import Tensor, nn
from torch.nn import functional as F

import biotorch
import biotorch.data
from biotorch.layers import connections


def randn(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


def autoencoder() -> nn.Sequential:
    """Layers at half and a quarter of the output's size, at a size that does not divide it, and grouped."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv2d(4, 6, 2, stride=2, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 2, padding="valid"),
    ).double()


@pytest.mark.parametrize(("rule", "feedback"), [("dfa", "kernel"), ("dfa", "shared"), ("dkp", "kernel")])
def test_every_layer_of_an_autoencoder_hears_the_errors_of_its_places(rule, feedback):
    model, x = biotorch.convert(autoencoder(), rule, feedback=feedback), randn(3, 1, 8, 8).requires_grad_()
    y = model(x)
    e = torch.randn_like(y)
    y.backward(e)
    read = copy.deepcopy(model)
    for name, connection in connections(model).items():  # the reference reads B where kernels have it
        vars(read[int(name)])["feedback"] = connection.feedback.detach()
    with torch.no_grad():
        expected = reference.run(read, x, e, "dfa")
    torch.testing.assert_close(x.grad, expected.input_gradient)
    for name, gradient in expected.gradients.items():
        if "feedback" not in name:
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", PLAIN_DIRECT)
def test_one_by_one_convolutions_learn_as_linear_layers_do(rule):
    convolutions = biotorch.convert(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double(), rule)
    linear = biotorch.convert(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 3)).double(), rule)
    with torch.no_grad():
        for name, tensor in [*linear.named_parameters(), *linear.named_buffers()]:
            tensor.copy_(convolutions.state_dict()[name].view(tensor.shape))
    x, e = randn(2, 1, 5, 6), randn(2, 3, 5, 6)
    convolutions(x).backward(e)
    linear(x.movedim(1, -1)).backward(e.movedim(1, -1))
    for name, parameter in linear.named_parameters():
        found = convolutions.get_parameter(name).grad
        torch.testing.assert_close(found.view(parameter.shape), parameter.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_a_kernel_b_that_learns_gets_the_gradient_of_a_convolution_of_the_errors():
    """The output layer's own B is then a second W; a coarser layer's reads the errors summed over 2 x 2 places."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 5, 3, 1, 1), nn.ConvTranspose2d(5, 4, 2, 2)).double()
    biotorch.convert(model, "dkp")
    x, e = randn(2, 2, 8, 8), randn(2, 4, 8, 8)
    hidden = [x, model[0](x), model[1](model[0](x))]
    model(x).backward(e)
    coarse = F.avg_pool2d(e, 2, divisor_override=1)
    torch.testing.assert_close(model[1].feedback.grad, weight_gradient(F.conv2d, hidden[1], coarse, padding=1))
    torch.testing.assert_close(model[0].feedback.grad, weight_gradient(F.conv2d, x, coarse, padding=1, stride=2))
    torch.testing.assert_close(model[2].weight.grad, model[2].feedback.grad.transpose(0, 1))


def weight_gradient(convolve, x: Tensor, e: Tensor, **options) -> Tensor:
    """Gradient by a kernel (n_out, C_in, 3, 3) of <convolve(x), e>."""
    kernel = x.new_zeros(e.shape[1], x.shape[1], 3, 3, requires_grad=True)
    return torch.autograd.grad(convolve(x.detach(), kernel, **options), kernel, e)[0]


def test_a_dense_b_projects_the_whole_output_to_the_whole_input_of_convolutions_and_to_linear_layers():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4), nn.Tanh(),
        nn.Linear(4, 27), nn.Unflatten(1, (3, 3, 3)), nn.ConvTranspose2d(3, 2, 2, stride=2),
    ).double()  # fmt: skip
    x, e = randn(2, 1, 6, 6).requires_grad_(), randn(2, 2, 6, 6)
    biotorch.convert(model, "dfa", feedback="dense", inputs=x)
    shapes = {name: connection.feedback_shape for name, connection in connections(model).items()}
    assert shapes == {"0": (72, 36), "3": (72, 27), "5": (72, 4), "7": (72, 27)}
    model(x).backward(e)
    h = model[0](x).tanh()
    code = model[3](h.flatten(1)).tanh()
    delta = (e.flatten(1) @ model[3].feedback).view(h.shape) * (1 - h**2)
    torch.testing.assert_close(x.grad, (e.flatten(1) @ model[0].feedback).view(x.shape))
    torch.testing.assert_close(model[0].bias.grad, delta.sum((0, 2, 3)))
    torch.testing.assert_close(model[3].bias.grad, ((e.flatten(1) @ model[5].feedback) * (1 - code**2)).sum(0))
    torch.testing.assert_close(model[5].bias.grad, (e.flatten(1) @ model[7].feedback).sum(0))


@pytest.mark.parametrize("size", [(2, 5, 6), (3, 3, 3)])
def test_targets_of_the_shape_of_an_image_output_reach_their_places(size):
    channels, *_ = size
    model = biotorch.convert(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), nn.Conv2d(4, channels, 1)).double(), "drtp")
    x, y = randn(2, 1, *size[1:]), randn(2, *size)
    with biotorch.targets(y, scale=0.5):
        output = model(x)
    output.square().mean().backward()
    delta = F.conv_transpose2d(-0.5 * y, model[2].feedback) * (1 - model[0](x).tanh() ** 2)
    torch.testing.assert_close(model[0].bias.grad, delta.sum((0, 2, 3)))


def test_an_autoencoder_of_digits_beats_the_mean_image():
    """Mean squared errors on the test digits: the mean image .07, only the output layer trained .10."""
    with np.load(Path(biotorch.data.__file__).parent / "digits.npz") as archive:
        images = torch.from_numpy(archive["images"]).float().view(-1, 1, 8, 8) / 16
    train, test = images[:1437], images[1437:]
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.Tanh(), nn.Conv2d(16, 8, 3, 2, 1), nn.Tanh(),
        nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )  # fmt: skip
    biotorch.convert(model, "dfa", seed=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(5):
        for index in torch.randperm(len(train)).split(32):
            optimizer.zero_grad()
            F.mse_loss(model(train[index]), train[index]).backward()
            optimizer.step()
    mean = F.mse_loss(train.mean(0, keepdim=True).expand_as(test), test)
    with torch.no_grad():
        assert F.mse_loss(model(test), test) < 0.8 * mean
