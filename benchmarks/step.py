"""Time and memory of a training step under each rule, as a ratio to the plain PyTorch step.

    python benchmarks/step.py                      # fp32, channels_last, batch 128
    python benchmarks/step.py --precision bf16 --networks resnet20 --rules fa dfa

Every round steps the plain network and then each rule's, in an order drawn anew; the ratio is taken within
the round, so that whatever else the machine does hits both. A turn is three steps, of which the first is not
timed: it refills the caches and memory pools that another network's step has used, which in training the
step before has done. Printed: the median of the ratios and their quartiles.
Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import random
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from biotorch import convert, models, rules, targets


class Trainer:
    """One network with its optimizer, on the device, ready to step."""

    def __init__(self, network: str, rule: str | None, precision: str, compiled: bool, device: str) -> None:
        torch.manual_seed(0)
        model = models.build(network)
        if rule is not None:
            convert(model, rule)
        self.model: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.forward = torch.compile(self.model) if compiled else self.model
        bf16 = precision == "bf16"
        self.autocast = torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
        self.device = device

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Seconds of one training step."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with self.autocast, targets(labels):
            loss = F.cross_entropy(self.forward(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def measure(network: str, arguments: argparse.Namespace) -> list[str]:
    """Rows of the table: the plain network's step in milliseconds, then each rule's ratio to it."""
    images = torch.randn(arguments.batch, 1 if network == "le_net_mnist" else 3, 32, 32, device=arguments.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (arguments.batch,), device=arguments.device)
    names: list[str | None] = [None, *arguments.rules]
    trainers = [Trainer(network, name, arguments.precision, arguments.compile, arguments.device) for name in names]
    for trainer in trainers:
        for _ in range(arguments.warm_up):
            trainer.step(images, labels)
    seconds = [[0.0] * len(trainers) for _ in range(arguments.rounds)]
    for turn in seconds:
        for index in random.sample(range(len(trainers)), len(trainers)):
            trainers[index].step(images, labels)
            turn[index] = statistics.fmean(trainers[index].step(images, labels) for _ in range(2))
    rows = [f"| {network} | plain PyTorch | {1000 * statistics.median(row[0] for row in seconds):.1f} ms | |"]
    for index, name in enumerate(arguments.rules, start=1):
        low, median, high = statistics.quantiles([row[index] / row[0] for row in seconds], n=4)
        rows.append(f"| {network} | {name} | **{median:.3f}** | {low:.3f} - {high:.3f} |")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["le_net_cifar", "resnet20"])
    parser.add_argument("--rules", nargs="+", default=rules.available())
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {platform.machine()}, {arguments.device}, {torch.get_num_threads()} threads, "
        f"{arguments.precision}, batch {arguments.batch}, channels_last"
        f"{', compiled' if arguments.compile else ''}, {arguments.rounds} rounds\n"
    )
    print("| network | rule | step / plain step | quartiles |\n|---|---|---|---|")
    for network in arguments.networks:
        print("\n".join(measure(network, arguments)), flush=True)


if __name__ == "__main__":
    main()
