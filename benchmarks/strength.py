"""`strength`: accuracy that each attack leaves, beside the same attack of torchattacks with an equal budget.

Four networks are trained first, a minute or so each: `cnn`, a small network on MNIST; `defended_cnn`, the same trained
on PGD examples at epsilon 0.2; `noisy_cnn`, the first behind Gaussian noise, for EOT-PGD; and `le_net_cifar` on
CIFAR-10. Both libraries attack the same test images with equal steps, step sizes, numbers of starts and epsilons, once
per seed. Images that are misclassified without an attack count as broken.

`left %` is the accuracy under biotorch's attack, the mean over the seeds, and `theirs` under torchattacks'. `ahead` is
the number of images that biotorch breaks in more seeds, and `behind` of those that torchattacks does. `p` is the
two-sided sign test on these images, which with one seed is McNemar's: the probability of a split at least as uneven if
both attacks are equally strong. An adversarial example for `noisy_cnn` is judged by 20 passes. Needs torchattacks, and
the data in BIOTORCH_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arguments import add_threads, count
from benchmarks.attacks import PAIRS, Attack, Budget, other_library
from benchmarks.networks import NETWORKS
from benchmarks.records import Record
from biotorch.data import DataConfig, Split, load
from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.measurement import chance

#: Passes that judge an adversarial example for a network with noise.
_JUDGES = 20


class _Noise(nn.Module):
    """Adds Gaussian noise of standard deviation 0.2, in eval mode, too."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.2 * torch.randn_like(images)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A network, how it is trained, and what it is attacked with.

    Attributes:
        build: makes the untrained network for images in [0, 1].
        data: its data set.
        epochs: epochs of Adam at 0.001, over 128 images at a time.
        epsilons: radii of the attacks. The last one is the only one of few-pixel (which has none), of the
            repetitions of Square, and of AutoAttack.
        defence: epsilon of the PGD examples it is trained on, which grows from 0 over the first two epochs.
        noisy: whether its outputs are random, so that only PGD and EOT-PGD are compared.
    """

    build: Callable[[], nn.Module]
    data: str
    epochs: int
    epsilons: tuple[float, ...]
    defence: float = 0.0
    noisy: bool = False


def _cnn() -> nn.Sequential:
    first, second = nn.Conv2d(1, 8, 5, 2, 2), nn.Conv2d(8, 16, 3, 2, 1)
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
    )


_CASES = {
    "cnn": _Case(_cnn, "mnist", 2, (0.05, 0.1)),
    "defended_cnn": _Case(_cnn, "mnist", 6, (0.1, 0.2), defence=0.2),
    "noisy_cnn": _Case(lambda: nn.Sequential(_Noise(), _cnn()), "mnist", 2, (0.1,), noisy=True),
    "le_net_cifar": _Case(NETWORKS["le_net_cifar"].build, "parquet:cifar10-jpeg", 5, (1 / 255, 2 / 255)),
}

#: Budgets beside the defaults, for each attack.
_BUDGETS: dict[str, list[dict[str, Any]]] = {
    "FGSM": [{}],
    "PGD": [{"steps": 10}, {"steps": 40}],
    "TPGD": [{"steps": 40}],
    "EOTPGD": [{"steps": 40, "samples": 4}],
    "Square": [{"queries": queries} for queries in (100, 500, 1000, 5000)],
    "AutoPGD": [{"steps": 40, "loss": "ce"}, {"steps": 40, "loss": "dlr"}],
    "FewPixel": [{"pixels": pixels, "generations": 10, "population": 90} for pixels in (1, 3)],
    "AutoAttack": [{}],
}
_ONCE = ("FGSM", "AutoAttack")
_AT_ONE_EPSILON = ("Square", "FewPixel", "AutoAttack")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    told = f"of {', '.join(_CASES)}; default: all"
    parser.add_argument("--networks", nargs="+", choices=list(_CASES), default=list(_CASES), metavar="NET", help=told)
    parser.add_argument("--attacks", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="ATTACK")
    parser.add_argument("--images", type=count, default=300, help="test images, from the first on; default: 300")
    parser.add_argument("--seeds", type=count, default=3, help="of attacks that draw; default: 3")
    parser.add_argument("--training-images", type=count, default=30000, help="default: 30000")
    add_threads(parser, 1)


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each network, attack, budget and epsilon."""
    other_library()  # before a network is trained in vain
    for name in arguments.networks:
        case = _CASES[name]
        model, images, labels = network(name, arguments.training_images, arguments.images)
        attacks = [each for each in arguments.attacks if not case.noisy or each in ("PGD", "EOTPGD")]
        for attack in attacks:
            epsilons = case.epsilons[-1:] if attack in _AT_ONE_EPSILON else case.epsilons
            for epsilon in epsilons:
                for budget in _BUDGETS[attack]:
                    seeds = 1 if attack in _ONCE else arguments.seeds
                    judges = _JUDGES if case.noisy else 1
                    figures = compare(model, images, labels, attack, Budget(epsilon=epsilon, **budget), seeds, judges)
                    place = {} if attack == "FewPixel" else {"epsilon": epsilon}
                    settings = {**place, **budget, "images": arguments.images, "seeds": seeds}
                    yield Record(benchmark="strength", network=name, rule=attack, settings=settings, figures=figures)


def compare(
    model: nn.Module, images: Tensor, labels: Tensor, attack: str, budget: Budget, seeds: int, judges: int = 1
) -> dict[str, float]:
    """Accuracies under both libraries' attack in percent, and the paired test of their difference.

    Args:
        model: network for images in [0, 1], in eval mode.
        images, labels: (n, C, H, W) and (n,).
        attack: a name of `PAIRS`.
        budget: what both attacks may spend; its seed counts on from here.
        seeds: number of repetitions.
        judges: passes that judge each adversarial example.
    """
    with torch.no_grad():
        clean = model(images).argmax(1) == labels
    own = other = torch.zeros(len(images))
    for seed in range(budget.seed, budget.seed + seeds):
        attacks = PAIRS[attack](model, dataclasses.replace(budget, seed=seed))
        own = own + clean * _withstood(attacks["biotorch"], model, images, labels, judges, seed)
        other = other + clean * _withstood(attacks["torchattacks"], model, images, labels, judges, seed)
    ahead, behind = int((own < other).sum()), int((own > other).sum())
    return {
        "left %": 100 * float(own.mean()) / seeds,
        "theirs": 100 * float(other.mean()) / seeds,
        "ahead": ahead,
        "behind": behind,
        "p": min(1.0, 2 * chance(max(ahead, behind), min(ahead, behind))),
    }


def _withstood(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, judges: int, seed: int) -> Tensor:
    """Share of the passes that classify each adversarial example as labelled: (n,)."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # torchattacks' few-pixel draws from this generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks
        adversarial = attack(images, labels)
    with torch.no_grad():
        return sum((model(adversarial).argmax(1) == labels).float() for _ in range(judges)) / judges  # type: ignore[no-any-return]


# Networks and images ---------------------------------------------------------------------------


@functools.cache
def network(name: str, training_images: int, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network in eval mode, with the first test images (n, C, H, W) in [0, 1] and their labels."""
    case = _CASES[name]
    data = load(DataConfig(dataset=case.data), seed=0)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (data.mean, data.std))

    def first(split: Split, number: int) -> tuple[Tensor, Tensor]:
        inputs, labels = next(split.in_order(number))
        return (inputs * std + mean).clamp(0, 1).contiguous(), labels

    torch.manual_seed(0)
    model = case.build().to(memory_format=torch.contiguous_format)  # torchattacks' FAB fails in channels_last
    _train(model, *first(data.train, training_images), case.epochs, case.defence)
    return model.eval().requires_grad_(False), *first(data.test, images)


def _train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, defence: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    drawn = torch.cat([torch.randperm(len(images)) for _ in range(epochs)])
    batches = drawn.split(128)  # type: ignore[no-untyped-call]
    for update, part in enumerate(batches):
        batch, wanted = images[part], labels[part]
        if defence:
            epsilon = defence * min(1, (update + 1) / len(batches) * epochs / 2)
            batch = PGD(model, epsilon, steps=7, seed=update, stop_at_success=False)(batch, wanted)
        optimizer.zero_grad()
        F.cross_entropy(model(batch), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
