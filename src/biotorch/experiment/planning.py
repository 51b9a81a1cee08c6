"""Checks of a network before memory is taken: its arguments, and the size of the network and of its training."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _memory, data, models
from biotorch.conversion.convert import convert
from biotorch.data import Task
from biotorch.errors import ConfigError, ConversionError, SectionError
from biotorch.experiment.config import Config
from biotorch.experiment.model import ModeConfig
from biotorch.layers import is_feedback
from biotorch.models.registry import check_arguments
from biotorch.rules import DirectRule
from biotorch.training.evaluation import require_outputs
from biotorch.training.losses import Loss


def require_arguments(config: Config) -> None:
    """Check `model.arguments` before any data are read, by building the network without memory.

    A network of another library that may depend on the size of images is built if the configuration sets the size; if
    not, the names of torchvision's arguments are checked. One of the Hugging Face hub, whose configuration would have
    to be downloaded, is checked only by the run.

    Raises:
        SectionError: the architecture does not take the arguments, or is too large for any machine.
    """
    model = config.model
    if model.architecture is None or not model.arguments:
        return
    own, side = model.architecture in models.OWN, config.data.side if config.data.in_files else config.data.target_size
    shape = (config.data.window,) if config.data.is_text else None if own or side is None else (3, side, side)
    if own or (shape is not None and model.architecture.count("/") < 2):
        refusal = _refusal(model.architecture, json.dumps(model.arguments), shape)
    else:
        refusal = _unknown(model.architecture, json.dumps(model.arguments))
    if refusal is not None:
        raise SectionError({"model.arguments": refusal})


@functools.lru_cache(maxsize=1000)
def _refusal(architecture: str, arguments: str, shape: tuple[int, ...] | None) -> str | None:
    """Reason why the architecture does not take these arguments, given as JSON; None if it does."""
    try:
        models.sketch(architecture, input_shape=shape, **json.loads(arguments))
    except (ValueError, ModuleNotFoundError) as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=1000)
def _unknown(architecture: str, arguments: str) -> str | None:
    try:
        check_arguments(architecture, json.loads(arguments))
    except ValueError as error:
        return str(error)
    return None


def require_fit(config: Config) -> None:
    """Check what a configuration says of its data: columns, number of classes, loss. No network is built.

    Raises:
        FileNotFoundError, DataError: as in `data.load`.
        ConfigError: a setting is for another kind of data, or loss or top_k do not fit the targets.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will warn
        dataset = data.load(config.data, config.experiment.seed)
    config.require_kind(dataset.kind)
    require_loss(config, dataset.task)
    if config.training is not None:
        require_outputs(config.training.metrics.top_k, dataset.num_outputs)


def require_loss(config: Config, task: Task) -> Loss:
    """Loss of a configuration for the targets of a task.

    Raises:
        ConfigError: it does not take them, or top_k, which is for classes, is set for a regression.
    """
    if task == "regression" and config.training is not None and config.training.metrics.top_k > 1:
        raise ConfigError("training.metrics.top_k: a setting of classes, but the targets are numbers: leave it out")
    try:
        return config.model.loss(task)
    except SectionError as error:
        raise ConfigError(f"model.{error}") from error


@torch.random.fork_rng(devices=[])  # the run's own network is drawn as if nothing had been built before
def require_memory(config: Config, num_outputs: int, input_shape: Sequence[int]) -> None:
    """Check that the network of a resolved configuration fits into memory with all that its training keeps.

    These are W, B if it has the shape of W, gradients, the optimizer's state, and the weights of the best epoch.
    Networks with published weights are not checked.

    Raises:
        NotEnoughMemoryError: it does not fit.
        ValueError, TypeError: as in `models.build`.
    """
    model, training = config.model, config.training
    assert model.architecture is not None
    assert model.mode is not None
    if model.pretrained:
        return
    sketch = models.sketch(model.architecture, num_outputs, input_shape, **model.arguments)
    if sketch is None:
        return
    weights = sum(each.numel() * each.element_size() for each in (*sketch.parameters(), *sketch.buffers()))
    copies = 1 + _feedback(model.mode)
    if training is not None:
        copies += copies + 1 + training.optimizer.state_per_weight
    given = f" with model.arguments {model.arguments}" if model.arguments else ""
    _memory.require(math.ceil(weights * copies), f"model.architecture {model.architecture!r}{given}: its training")


def _feedback(mode: ModeConfig) -> float:
    """Numbers in B per number in W; for direct rules, whose B depend on the number of outputs, a lower bound of 0."""
    rule = mode.build()
    if isinstance(rule, DirectRule):
        return 0.0
    try:
        small = convert(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)), rule)
    except ConversionError:
        return 0.0
    numbers = sum(value.numel() for name, value in small.state_dict().items() if is_feedback(name))
    return float(numbers / 128)


@contextlib.contextmanager
def activations_fit(model: nn.Module, split: data.Split, config: Config, examples: int) -> Iterator[None]:
    """Context of a forward pass with a number of examples, after which a whole batch is compared with the memory.

    A training batch takes at least the outputs of all layers, which the backward pass needs.

    Raises:
        NotEnoughMemoryError: the batch does not fit.
    """
    sizes: list[int] = []

    def add(layer: nn.Module, inputs: Any, outputs: Any) -> None:
        if isinstance(outputs, Tensor):
            sizes.append(outputs.numel() * outputs.element_size())

    handles = [each.register_forward_hook(add) for each in model.modules() if not any(each.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if config.training is not None and next(model.parameters(), torch.empty(0)).device.type == "cpu":
        batch = min(config.training.hyperparameters.batch_size, len(split))
        what = f"training.hyperparameters.batch_size {config.training.hyperparameters.batch_size}: a batch"
        _memory.require(sum(sizes) * batch // examples, what)
