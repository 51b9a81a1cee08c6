"""`attacks`: time of each attack, as a ratio to the same attack of torchattacks or pyautoattack at equal steps.

Each is measured on two versions of a small trained network: `withstands`, with an output that no perturbation
overturns, so that every attack spends its whole budget and only speed is compared; and `trained`, on noisy
patterns of which some break early, where it counts that biotorch leaves broken images alone. Beside the ratio
stand the shares of images that biotorch's attack and the other one break. `torchattacks' own 10 steps` is its
AutoAttack as it comes, which makes a tenth of the steps of the published one. Images are in channels_last; one
thread by default. Needs torchattacks.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyautoattack
import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arguments import add_networks, add_rounds, add_threads, count
from benchmarks.measuring import interleaved, ratio
from benchmarks.networks import NETWORKS
from benchmarks.records import Record
from biotorch.robustness.attacks.auto_attack import AutoAttack, AutoPGD
from biotorch.robustness.attacks.few_pixel import FewPixel
from biotorch.robustness.attacks.gradient import EOTPGD, FGSM, PGD, TPGD
from biotorch.robustness.attacks.library import Square

Attack = Callable[[Tensor, Tensor], Tensor]

#: Contrast of the patterns against noise of standard deviation 0.15: so low that some images break.
_CONTRAST = 0.15
#: Added to an output that nothing overturns. The cross-entropy still has a gradient, of exp(-60).
_MARGIN = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What both attacks of a pair may spend.

    Attributes:
        epsilon: radius in L∞.
        steps: of PGD, TPGD, EOT-PGD and Auto-PGD; PGD's, TPGD's and EOT-PGD's are 2.5 epsilon / steps long.
        loss: of Auto-PGD, `ce` or `dlr`.
        samples: gradients of a step of EOT-PGD.
        queries: of Square; in AutoAttack 5,000.
        pixels, generations, population: of few-pixel.
        seed: of attacks that take one; the others of torchattacks draw from the global generators.
    """

    epsilon: float = 8 / 255
    steps: int = 40
    loss: Literal["ce", "dlr"] = "ce"
    samples: int = 4
    queries: int = 1000
    pixels: int = 1
    generations: int = 30
    population: int = 150
    seed: int = 0

    @property
    def step_size(self) -> float:
        """Length of a step."""
        return 2.5 * self.epsilon / self.steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--attacks", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="ATTACK")
    add_networks(parser, ["le_net_mnist"], ["le_net_mnist", "le_net_cifar"])
    parser.add_argument("--versions", nargs="+", choices=["withstands", "trained"], default=["withstands", "trained"])
    parser.add_argument("--images", type=count, default=16)
    parser.add_argument("--steps", type=count, default=40, help="of PGD, TPGD, EOT-PGD and Auto-PGD")
    parser.add_argument("--samples", type=count, default=4, help="of a step of EOT-PGD")
    parser.add_argument("--queries", type=count, default=1000, help="of Square; in AutoAttack 5,000")
    parser.add_argument("--generations", type=count, default=30, help="of few-pixel")
    parser.add_argument("--population", type=count, default=150, help="of few-pixel")
    parser.add_argument("--training-steps", type=int, default=150)
    add_threads(parser, 1)
    add_rounds(parser, 5)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that are not counted")


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each network, version, attack and library."""
    for network in arguments.networks:
        channels = NETWORKS[network].shape[0]
        model = trained(network, channels, arguments.training_steps)
        images, labels = patterns(arguments.images, channels, seed=0)
        for version in arguments.versions:
            withstands = version == "withstands"
            attacked = withstanding(model, 3) if withstands else model
            wanted = torch.full_like(labels, 3) if withstands else labels
            for attack in arguments.attacks:
                yield from _compare(attack, attacked, images, wanted, arguments, network, version)


def _compare(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    arguments: argparse.Namespace,
    network: str,
    version: str,
) -> Iterator[Record]:
    budget = Budget(
        steps=arguments.steps,
        samples=arguments.samples,
        queries=arguments.queries,
        generations=arguments.generations,
        population=arguments.population,
    )
    attacks = PAIRS[name](model, budget)
    broken: dict[str, float] = {}

    def case(library: str) -> Callable[[], float]:
        def run() -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of checks, about a network that nothing breaks
                start = time.perf_counter()
                adversarial = attacks[library](images, labels)
                seconds = time.perf_counter() - start
            with torch.no_grad():
                broken[library] = 100 * float((model(adversarial).argmax(1) != labels).float().mean())
            return seconds

        return run

    cases = {library: case(library) for library in attacks}
    interleaved(cases, arguments.warm_up)
    costs = interleaved(cases, arguments.rounds)
    for library in list(attacks)[1:]:
        yield Record.of(
            ratio(costs["biotorch"], costs[library]),
            benchmark="attacks",
            network=network,
            rule=name,
            seconds=statistics.median(costs[library]),
            settings={"on": version, "against": library},
            figures={"broken %": broken["biotorch"], "by the other": broken[library]},
        )


# Pairs: biotorch's attack first, then the others -----------------------------------------------


def _fgsm(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    return {"biotorch": FGSM(model, budget.epsilon), "torchattacks": other_library().FGSM(model, budget.epsilon)}


def _pgd(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    return {
        "biotorch": PGD(model, budget.epsilon, seed=budget.seed, **_steps(budget)),
        "torchattacks": other_library().PGD(model, budget.epsilon, budget.step_size, budget.steps),
    }


def _tpgd(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    return {
        "biotorch": TPGD(model, budget.epsilon, seed=budget.seed, **_steps(budget)),
        "torchattacks": other_library().TPGD(model, budget.epsilon, budget.step_size, budget.steps),
    }


def _eot_pgd(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    other = other_library().EOTPGD(model, budget.epsilon, budget.step_size, budget.steps, budget.samples)
    own = EOTPGD(model, budget.epsilon, samples=budget.samples, seed=budget.seed, **_steps(budget))
    return {"biotorch": own, "torchattacks": other}


def _square(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    other = other_library().Square(model, eps=budget.epsilon, n_queries=budget.queries, seed=budget.seed)
    return {"biotorch": Square(model, budget.epsilon, queries=budget.queries, seed=budget.seed), "torchattacks": other}


def _auto_pgd(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    settings: dict[str, Any] = {"eps": budget.epsilon, "loss": budget.loss, "seed": budget.seed}
    return {
        "biotorch": AutoPGD(model, budget.epsilon, steps=budget.steps, loss=budget.loss, seed=budget.seed),
        "torchattacks": other_library().APGD(model, steps=budget.steps, **settings),
        "pyautoattack": APGDAttack(model, n_iter=budget.steps, device="cpu", **settings).perturb,
    }


def _few_pixel(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    common: dict[str, Any] = {"pixels": budget.pixels, "steps": budget.generations}
    own: dict[str, Any] = {**common, "population": budget.population, "seed": budget.seed}
    return {
        "biotorch": FewPixel(model, **own),
        "biotorch, image by image": FewPixel(model, batch_size=1, **own),
        "torchattacks": other_library().OnePixel(model, popsize=budget.population, **common),
    }


def _auto_attack(model: nn.Module, budget: Budget) -> dict[str, Attack]:
    library = other_library()
    settings: dict[str, Any] = {"eps": budget.epsilon, "norm": "Linf", "seed": budget.seed}
    ensemble = library.MultiAttack(
        [
            library.APGD(model, steps=100, **settings),
            library.APGDT(model, steps=100, **settings),
            library.FAB(model, steps=100, multi_targeted=True, **settings),
            library.Square(model, n_queries=5000, **settings),
        ]
    )
    standard = pyautoattack.AutoAttack(model, **settings)
    return {
        "biotorch": AutoAttack(model, budget.epsilon, seed=budget.seed),
        "torchattacks": ensemble,
        "torchattacks' own 10 steps": library.AutoAttack(model, **settings),
        "pyautoattack": lambda images, labels: standard.run_standard_evaluation(images, labels)[0],
    }


#: Makes the attacks of one kind on a network, by library.
PAIRS: dict[str, Callable[[nn.Module, Budget], dict[str, Attack]]] = {
    "FGSM": _fgsm,
    "PGD": _pgd,
    "TPGD": _tpgd,
    "EOTPGD": _eot_pgd,
    "Square": _square,
    "AutoPGD": _auto_pgd,
    "FewPixel": _few_pixel,
    "AutoAttack": _auto_attack,
}


def _steps(budget: Budget) -> dict[str, Any]:
    """Number and size of the steps, as arguments of an attack of biotorch."""
    return {"steps": budget.steps, "step_size": budget.step_size}


def other_library() -> Any:
    """The module torchattacks. Raises ModuleNotFoundError, which says how to install it."""
    try:
        import torchattacks
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "torchattacks is missing; install it without its pinned dependencies: pip install --no-deps torchattacks"
        ) from error
    return torchattacks


# Networks and images ---------------------------------------------------------------------------


def patterns(count: int, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, channels, 32, 32) of ten smooth patterns in noise, and their labels."""
    shapes = torch.randn(10, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    shapes = F.interpolate(shapes, (32, 32), mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    noise = 0.15 * torch.randn(count, channels, 32, 32, generator=generator)
    images = (0.5 + _CONTRAST * shapes[labels] + noise).clamp(0, 1)
    return images.to(memory_format=torch.channels_last), labels


def trained(network: str, channels: int, steps: int) -> nn.Module:
    """The network, trained on the patterns."""
    model = NETWORKS[network].build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        images, labels = patterns(64, channels, seed=1 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def withstanding(model: nn.Module, label: int) -> nn.Module:
    """A copy whose output for `label` is higher than any small perturbation can make another."""
    model = copy.deepcopy(model)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[label] += _MARGIN
    return model
