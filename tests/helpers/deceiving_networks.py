"""Networks that hide their gradients, or show wrong ones, on the digits."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

#: Images of the digits that are attacked.
N = 150
EPSILONS = (0.05, 0.1, 0.2)
ATTACKS = ("random_signs", "fgsm", {"type": "pgd", "steps": 20})


class Wrapped(nn.Module):
    """`network` behind a function of the images, and in front of one of the outputs."""

    def __init__(self, network, before=lambda images: images, after=lambda outputs: outputs):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images):
        return self.after(self.network(self.before(images)))


def noisy(outputs):
    return outputs + 0.1 * torch.randn_like(outputs)


def train(network, split, epochs=40):
    images, labels = split
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(images[index]), labels[index]).backward()
            optimizer.step()
    return network.eval()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@dataclasses.dataclass(frozen=True)
class Nets:
    plain: nn.Module  # trained by backpropagation, nothing hidden
    convolution: nn.Module
    aligned: nn.Module  # trained by feedback alignment
    unaligned: nn.Module  # the weights of `plain`, with feedback that has never seen them


def strongest_stands_in_the_sentence(found):
    left, (low, high) = found.worst_case[found.judged_at]
    assert f"{left:.1f} % of the images [{low:.1f}, {high:.1f}] are still classified as labelled" in found.sentence
