"""Training throughput of the first system, PyPI `biotorch==0.0.16`, in an environment where that is installed.

    PYTHON benchmarks/first_environment.py --network resnet20 --rule dfa --data FOLDER --workers 2 --threads 1
    PYTHON benchmarks/first_environment.py --network resnet20 --data FOLDER --export cifar10.npz

`first_system.py` calls it; PYTHON's environment is not ours, as the package there bears the same name. The
models, data sets, transforms, loaders and the `train` function are the first system's own, unaltered, with its
default options. Its runner has no part: it loads a pickled model again, which PyTorch refuses since 2.6.
CIFAR-10 is read from FOLDER/cifar10-jpeg/train.parquet and test.parquet instead of the original files, and
decoded before anything is timed; MNIST is FOLDER/MNIST/raw.

The last line printed is JSON: `images_per_second`, one figure per epoch, of the call of `train` alone, and
`torch`. With --export, nothing is trained: the images it would train on are written as uint8 arrays for the
other side.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from PIL import Image

VERSION = "0.0.16"

#: Network -> its batch size, and the module and class of its data set in the first system.
NETWORKS = {
    "le_net_mnist": (64, "mnist", "MNIST"),
    "le_net_cifar": (128, "cifar", "CIFAR10Benchmark"),
    "resnet20": (128, "cifar", "CIFAR10Benchmark"),
}

#: Test images in an export: as few as are needed to be a test set, since testing is not timed.
TEST_IMAGES = 1000


@functools.cache
def parquet(path: Path) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """The images (N, 32, 32, 3) and labels of a file in the Hugging Face hub's column layout."""
    table = importlib.import_module("pyarrow.parquet").read_table(path)
    files = [row["bytes"] for row in table["img"].to_pylist()]
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return images, table["label"].to_pylist()


class ParquetCIFAR10(torchvision.datasets.CIFAR10):  # type: ignore[misc]
    """torchvision's data set, its way to an item included, but of parquet files."""

    def __init__(self, root: str, train: bool, transform: Any, download: bool) -> None:
        torchvision.datasets.VisionDataset.__init__(self, root, transform=transform)
        images, labels = parquet(Path(root) / "cifar10-jpeg" / f"{'train' if train else 'test'}.parquet")
        self.data, self.targets = images.copy(), list(labels)


def read(network: str, folder: Path, images: int | None) -> Any:
    """The first system's data set for a network, of its first `images` training images."""
    # Its module looks torchvision's class up when the data set is made, so it finds this one.
    torchvision.datasets.CIFAR10 = ParquetCIFAR10
    _, module, name = NETWORKS[network]
    dataset = getattr(importlib.import_module(f"biotorch.datasets.{module}"), name)(32, dataset_path=str(folder))
    train = dataset.train_dataset
    train.data, train.targets = train.data[:images], train.targets[:images]
    return dataset


def export(dataset: Any, path: Path) -> None:
    """Write x_train, y_train, x_test and y_test."""
    train, test = dataset.train_dataset, dataset.test_dataset
    np.savez(
        path,
        x_train=np.asarray(train.data),
        y_train=np.asarray(train.targets, dtype=np.int64),
        x_test=np.asarray(test.data[:TEST_IMAGES]),
        y_test=np.asarray(test.targets[:TEST_IMAGES], dtype=np.int64),
    )


def measure(network: str, rule: str, dataset: Any, workers: int, epochs: int) -> list[float]:
    """Training images per second of each epoch."""
    torch.manual_seed(0)
    loader = dataset.create_train_dataloader(NETWORKS[network][0], num_workers=workers)
    build = getattr(importlib.import_module(f"biotorch.models.{rule}"), network)
    options = {"constrain_weights": False, "gradient_clip": False, "init": "xavier"}
    model = build(num_classes=10, layer_config={"type": rule, "options": options})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    train = importlib.import_module("biotorch.training.functions").train
    rates = []
    for epoch in range(epochs):
        start = time.perf_counter()
        train(model, rule, torch.nn.CrossEntropyLoss(), optimizer, loader, "cpu", epoch, multi_gpu=False)
        # The loader drops the last, incomplete batch.
        rates.append(len(loader) * loader.batch_size / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Measure, or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--rule", choices=["fa", "dfa"], default="fa")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, help="of the training set, the first so many; default: all")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--export", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if metadata.version("biotorch") != VERSION:
        parser.error(f"{sys.executable} has biotorch {metadata.version('biotorch')}, not {VERSION}")
    torch.set_num_threads(arguments.threads)
    # The first system prints its progress.
    with contextlib.redirect_stdout(sys.stderr):
        dataset = read(arguments.network, arguments.data, arguments.images)
        if arguments.export is not None:
            export(dataset, arguments.export)
            rates = []
        else:
            rates = measure(arguments.network, arguments.rule, dataset, arguments.workers, arguments.epochs)
    print(json.dumps({"images_per_second": rates, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
