"""How many threads a network can use: two one-thread processes against one process of two threads.

    python benchmarks/jobs.py
    python benchmarks/jobs.py --rounds 9 --seconds 3

Networks of growing size train on random images of their own size, batch 64, fp32, channels_last, under SGD with
momentum and the rule `fa`. Every round measures the updates per second of one process with two threads, and of two
processes with one thread each that run at the same time, in an order drawn anew; the ratio is taken within the round.
Above 1, two processes are faster: the thresholds of `biotorch.experiment.estimating` rest on where that ends.
Run it on an otherwise idle machine of two cores or more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import random
import statistics
import time
from multiprocessing.connection import Connection

import torch
from torch.nn import functional as F

import biotorch
from biotorch import models

#: Networks with the images that they take.
NETWORKS = {
    "le_net_mnist": (1, 32, 32),
    "le_net_cifar": (3, 32, 32),
    "resnet20": (3, 32, 32),
    "mlp": (3, 32, 32),
    "resnet56": (3, 32, 32),
    "resnet18": (3, 64, 64),
}


def rate(name: str, threads: int, seconds: float) -> float:
    """Updates per second, after three that are not counted."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = biotorch.convert(models.build(name, 10, input_shape=NETWORKS[name]), "fa")
    model.to(memory_format=torch.channels_last)
    images = torch.randn(64, *NETWORKS[name]).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    started, updates = time.perf_counter(), -3
    while updates < 1 or time.perf_counter() - started < seconds:
        if updates == 0:
            started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        updates += 1
    return updates / (time.perf_counter() - started)


def _work(pipe: Connection) -> None:
    while (task := pipe.recv()) is not None:
        pipe.send(rate(*task))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        processes.append(context.Process(target=_work, args=(theirs,), daemon=True))
        processes[-1].start()

    def measured(name: str, together: bool) -> float:
        used = pipes if together else pipes[:1]
        for pipe in used:
            pipe.send((name, 1 if together else 2, options.seconds))
        return float(sum(pipe.recv() for pipe in used))

    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, biotorch {biotorch.__version__}")
    print("network        parameters   two processes / two threads: median (quartiles)")
    for name in options.networks:
        ratios = []
        for _ in range(options.rounds):
            order = [True, False]
            random.shuffle(order)
            rates = {together: measured(name, together) for together in order}
            ratios.append(rates[True] / rates[False])
        size = sum(each.numel() for each in models.build(name, 10, input_shape=NETWORKS[name]).parameters())
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        print(f"{name:<14} {size:>10,}   {middle:.2f} ({low:.2f}-{high:.2f})", flush=True)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()


if __name__ == "__main__":
    main()
