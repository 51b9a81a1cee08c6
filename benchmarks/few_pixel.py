"""Time of the few-pixel attack on a batch of images, as a ratio to attacking image by image.

    python benchmarks/few_pixel.py                           # one pixel, 30 generations, population 150
    python benchmarks/few_pixel.py --images 8 --rounds 3

Compared are biotorch's `FewPixel` on all images at once, the same with `batch_size=1`, and `OnePixel` of torchattacks
(which takes an image at a time) at equal pixels, generations and population. Images are in channels_last, as in a study
of a run. Each on two versions of a network:
`withstands`, with an output that no pixel overturns, so that every attack spends its whole budget and nothing but
speed is compared; and `trained`, on images of ten noisy patterns, of which some break early: there it matters that
images leave, too. Every round runs all three, in an order drawn anew; the ratio is taken within the round.
Printed: the median of the ratios, their smallest and largest, and the share of images that each attack breaks.
Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import models
from biotorch.robustness.attacks.few_pixel import FewPixel

Attack = Callable[[Tensor, Tensor], Tensor]

#: Contrast of the patterns against noise of standard deviation 0.15: so low that some images break.
_CONTRAST = 0.15


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
    torch.manual_seed(0)
    model = models.build(network, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        images, labels = patterns(64, channels, seed=1 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def withstanding(model: nn.Module, label: int) -> nn.Module:
    """A copy whose output for `label` is higher than any pixel can make another."""
    model = copy.deepcopy(model)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[label] += 1e4
    return model


def measure(name: str, model: nn.Module, images: Tensor, labels: Tensor, arguments: argparse.Namespace) -> list[str]:
    """Rows of the table: ratios of the others' time to that of the batched attack."""
    import torchattacks

    budget = {"pixels": arguments.pixels, "steps": arguments.steps}
    attacks: dict[str, Attack] = {
        "batched": FewPixel(model, population=arguments.population, batch_size=arguments.images, **budget),
        "batch_size=1": FewPixel(model, population=arguments.population, batch_size=1, **budget),
        "torchattacks": torchattacks.OnePixel(model, popsize=arguments.population, **budget),
    }
    seconds: dict[str, list[float]] = {each: [] for each in attacks}
    broken = {}
    for _ in range(arguments.rounds):
        for each in random.sample(list(attacks), len(attacks)):
            start = time.perf_counter()
            adversarial = attacks[each](images, labels)
            seconds[each].append(time.perf_counter() - start)
            with torch.no_grad():
                broken[each] = float((model(adversarial).argmax(1) != labels).float().mean())
    own = seconds["batched"]
    milliseconds = 1000 * statistics.median(own) / len(images)
    rows = [f"| {name} | batched | {milliseconds:.0f} ms per image | | {100 * broken['batched']:.0f} % |"]
    for each in list(attacks)[1:]:
        ratios = [other / mine for other, mine in zip(seconds[each], own, strict=True)]
        middle = statistics.median(ratios)
        rows.append(
            f"| {name} | {each} | **{middle:.2f}** | {min(ratios):.2f} - {max(ratios):.2f} "
            f"| {100 * broken[each]:.0f} % |"
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["le_net_mnist", "le_net_cifar"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--population", type=int, default=150)
    parser.add_argument("--training-steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {platform.machine()}, cpu, 1 thread, {arguments.images} images, "
        f"{arguments.pixels} pixels, {arguments.steps} generations, population {arguments.population}, "
        f"{arguments.rounds} rounds\n"
    )
    print("| network | attack | time / batched time | range | broken |\n|---|---|---|---|---|")
    for network in arguments.networks:
        channels = 1 if network == "le_net_mnist" else 3
        model = trained(network, channels, arguments.training_steps)
        images, labels = patterns(arguments.images, channels, seed=0)
        same = torch.full_like(labels, 3)
        print("\n".join(measure(f"{network}, withstands", withstanding(model, 3), images, same, arguments)), flush=True)
        print("\n".join(measure(f"{network}, trained", model, images, labels, arguments)), flush=True)


if __name__ == "__main__":
    main()
