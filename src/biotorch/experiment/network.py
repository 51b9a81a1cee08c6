"""Networks built from configurations and checkpoints, and the choice of their trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import data, models, rules
from biotorch._names import unknown
from biotorch.conversion.convert import convert, first_match
from biotorch.data import Task
from biotorch.errors import CheckpointError, ConfigError, ConversionError, disk_is_full, without_frames
from biotorch.experiment.config import Config
from biotorch.experiment.identity import Which, is_own, own_config, read_checkpoint
from biotorch.experiment.model import ModeConfig, ModelConfig, RuleConfig
from biotorch.experiment.planning import activations_fit, require_loss, require_memory
from biotorch.layers import connections, feedback_parameters, is_feedback
from biotorch.layers.networks import isolated
from biotorch.models.outputs import main_output
from biotorch.models.registry import OF_STEPS, completed_arguments
from biotorch.training import training_loss
from biotorch.training.evaluation import require_outputs
from biotorch.training.losses import Loss
from biotorch.training.optimizers import FeedbackGroup


def train_only(model: nn.Module, patterns: Iterable[str]) -> None:
    """Freeze all parameters of `model` except those that match one of `patterns`.

    A pattern is the name of a parameter, or of a module with all its parameters, with `*` and `?` as in file names.
    Batch norm's running statistics are not parameters, so they still follow the batches. Feedback weights that are
    parameters are trained if their W is.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    names: dict[nn.Parameter, set[str]] = {}
    feedback = set(feedback_parameters(model))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter not in feedback:
            names.setdefault(parameter, set()).update(_above(name))
    everything = set().union(*names.values())
    trained: set[str] = set()
    for pattern in patterns:
        matching = {name for name in everything if fnmatchcase(name, pattern)}
        if not matching:
            raise ConfigError(f"model.train_only: {unknown('module or parameter', pattern, everything)}")
        trained |= matching
    for parameter, own in names.items():
        if not own & trained:
            parameter.requires_grad_(False)
    for connection in connections(model).values():
        connection.freeze_with_weight()


def _above(name: str) -> Iterator[str]:
    """Name of a parameter and names of all modules around it: `a`, `a.b`, `a.b.weight`."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


#: Exceptions that networks and losses raise for unsuitable tensors.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def build_model(config: Config, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Build the network of a resolved configuration under its rule, on the CPU.

    W is drawn by the rule's `init`, unless it comes from published weights or a checkpoint.

    Args:
        config: resolved configuration.
        num_outputs: number of classes, or of a regression's targets.
        input_shape: shape of an example, such as (C, H, W) or (T,).

    Raises:
        ConfigError: the architecture cannot be built like this, or model.train_only matches nothing in it.
        CheckpointError, FileNotFoundError: the checkpoint does not fit, or does not exist.
        NotEnoughMemoryError: the network or its training would take more memory than there is.
    """
    section = config.model
    assert section.architecture is not None
    assert section.mode is not None
    if len(input_shape) == 1 and section.architecture in OF_STEPS and not config.data.is_text:
        taken = OF_STEPS[section.architecture]
        raise ConfigError(f"model.architecture: {section.architecture!r} takes {taken}, not {input_shape[0]} numbers")
    try:
        require_memory(config, num_outputs, input_shape)
        model = models.build(
            section.architecture, num_outputs, section.pretrained, input_shape=input_shape, **section.arguments
        )
    except ValueError as error:
        given = f" with model.arguments {section.arguments}" if section.arguments else ""
        raise ConfigError(f"model.architecture {section.architecture!r}{given}: {error}") from error
    except OSError as error:
        if disk_is_full(error):
            raise
        raise ConfigError(
            f"model.architecture {section.architecture!r}: its files could not be downloaded or read ({error})"
        ) from error
    content = None if section.checkpoint is None else read_checkpoint(section.checkpoint)
    if content is not None:  # before the conversion: rules may derive their feedback from W
        weights = _weights(content, section).items()
        _load(model, {name: value for name, value in weights if not is_feedback(name)}, section)
    keep = section.pretrained or content is not None
    example = torch.zeros(1, *input_shape, dtype=torch.long if config.data.is_text else torch.float)
    try:
        convert(model, _rules(section.mode), copy_weights=keep, seed=config.experiment.seed, inputs=example)
    except ConversionError as error:
        raise ConfigError(f"model.mode: {error}") from error
    if content is not None and _same_rule(content, section):
        _load(model, content["model"], section)
    if section.train_only is not None:
        train_only(model, section.train_only)
    return model


def _rules(mode: ModeConfig) -> rules.Rule | dict[str, rules.Rule]:
    """Rule for all layers, or rules by layer pattern; layers that match no pattern get the mode's own rule."""
    if not mode.layers:
        return mode.build()
    return {pattern: rule.build() for pattern, rule in _by_pattern(mode).items()}


def _by_pattern(mode: ModeConfig) -> dict[str, RuleConfig]:
    return {**(mode.layers or {}), "*": mode}


def feedback_groups(model: nn.Module, mode: ModeConfig) -> list[FeedbackGroup]:
    """Optimizer parameter groups for B, one for each rule in `mode` that gives B its own learning rate or decay.

    `model` must have been built under `mode`. A B that several layers share is in the group of the first layer.
    """
    named = _by_pattern(mode)
    members: dict[str, dict[int, nn.Parameter]] = {pattern: {} for pattern in named}
    seen: set[int] = set()
    for connection in connections(model).values():
        pattern = first_match(connection.layer.label, named)
        for parameter in connection.learned:
            if pattern is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                members[pattern][id(parameter)] = parameter
    return [
        FeedbackGroup(list(members[pattern].values()), rule.feedback_rate, rule.feedback_decay)
        for pattern, rule in named.items()
        if rule.feedback_rate is not None or rule.feedback_decay is not None
    ]


def _weights(content: dict[str, Any], section: ModelConfig) -> dict[str, Tensor]:
    state = content["model"] if is_own(content) else content
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise CheckpointError(f"{section.checkpoint} is not a state_dict, which maps names to tensors")
    return dict(state)


def _same_rule(content: dict[str, Any], section: ModelConfig) -> bool:
    if not is_own(content):
        return False
    mode = own_config(content, str(section.checkpoint)).model.mode
    return mode is not None and section.mode is not None and _rules(mode) == _rules(section.mode)


def _load(model: nn.Module, state: dict[str, Tensor], section: ModelConfig) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{section.checkpoint} does not fit {section.architecture}: {error}") from error


def load(run: Path | str, which: Which = "best", device: torch.device | str = "cpu") -> nn.Module:
    """Load the trained network of a run, under its rule and in eval mode. No code stored in the run is executed.

    Args:
        run: folder of a run, or one of its .pth files.
        which: `best` on validation, or `latest`.
        device: device of the network.

    Raises:
        FileNotFoundError: the run does not exist, or has not finished an epoch.
        CheckpointError: the file is damaged, contains code, or was not written by a run.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> model = biotorch.load("runs/example/rule=fa,seed=0")
        >>> model.training, biotorch.metrics.alignment_angles(model).keys()
        (False, dict_keys(['hidden.1', 'head']))
    """
    content = read_checkpoint(Path(run), which)
    config = own_config(content, str(run))
    implied = models.implied_by_weights(config.model.architecture or "") if config.model.pretrained else {}
    scratch = config.model.model_copy(
        update={"pretrained": False, "checkpoint": None, "arguments": {**implied, **config.model.arguments}}
    )
    model = build_model(config.model_copy(update={"model": scratch}), content["num_classes"], content["input_shape"])
    _load(model, content["model"], scratch.model_copy(update={"checkpoint": Path(run)}))
    return model.to(device).eval()


def check_input(model: nn.Module, split: data.Split, config: Config) -> None:
    """Pass two examples through network and loss, so that a mismatch is reported before a run starts.

    The pass is made in eval mode and, if `model` will be trained, also in training mode, which adds auxiliary heads.

    Raises:
        ConfigError: the network does not take the examples, or the loss or top_k do not fit the labels or the network's
            outputs.
        NotEnoughMemoryError: a batch would take more memory than there is.
    """
    inputs, labels = next(iter(split.batches([torch.arange(min(2, len(split)))])))
    task: Task = "regression" if labels.is_floating_point() else "classification"
    loss = require_loss(config, task).to(inputs.device)
    training = model.training
    # Batch statistics need two examples, and one of the two may have been unreadable.
    trained = training and config.training is not None and len(labels) > 1
    try:
        for mode in (False, True) if trained else (False,):
            model.train(mode)
            with activations_fit(model, split, config, len(labels)):
                _check_pass(model, inputs, labels, loss, config)
    finally:
        model.train(training)


def _check_pass(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss, config: Config) -> None:
    network = f"model.architecture {config.model.architecture!r}"
    try:
        with isolated(model), torch.no_grad():
            outputs = model(inputs)
    except _REFUSALS as error:
        shape = "x".join(map(str, inputs.shape[1:]))
        key = "data.sequence_length" if config.data.is_text else "data.target_size"
        see = f", see {key}" if config.data.is_text or (config.data.is_image and inputs.dim() == 4) else ""
        raise ConfigError(
            f"{network} does not take the examples of data.dataset {config.data.dataset!r} ({shape}{see}): "
            f"{without_frames(str(error))}"
        ) from error
    try:
        found = main_output(outputs)
    except TypeError as error:
        raise ConfigError(f"{network} cannot be trained: {error}") from error
    if config.training is not None:
        require_outputs(config.training.metrics.top_k, found.shape[-1])
    _require_steps(found, labels, network, config)
    try:
        training_loss(loss, outputs, labels)
    except _REFUSALS as error:
        name = type(loss.function).__name__
        raise ConfigError(
            f"model.loss_function {name} does not take the network's outputs "
            f"{tuple(found.shape)} for labels {tuple(labels.shape)}: {without_frames(str(error))}"
        ) from error


def _require_steps(outputs: Tensor, labels: Tensor, network: str, config: Config) -> None:
    """Raise ConfigError if the network answers every step of a sequence that has one label, or the other way round."""
    wanted = labels.dim() + (not labels.is_floating_point())
    if {outputs.dim(), wanted} != {2, 3}:
        return
    words, per_step = ("example", "step"), wanted == 3
    cure = f"choose a network with one output per {words[per_step]}"
    if "per_step" in completed_arguments(config.model.architecture or "", {}):
        cure = f"set model.arguments.per_step: {str(per_step).lower()}"
    raise ConfigError(
        f"{network} gives one output per {words[not per_step]}, but data.dataset {config.data.dataset!r} has one label "
        f"per {words[per_step]}: {cure}"
    )
