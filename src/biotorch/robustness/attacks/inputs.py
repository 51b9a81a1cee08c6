"""Reading of what callers hand to an attack: its arguments, and images, labels and targets."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from biotorch import _names

#: Distance of a pixel from [0, 1] that counts as rounding, some units in the last place of a float32 pixel.
ROUNDING = 1e-6

#: Choices of target classes: drawn among the wrong classes, or the wrong class with the lowest or highest clean output.
TargetName = Literal["random", "least_likely", "next"]

#: Names of arguments in other libraries, and ours.
_OURS = {
    **dict.fromkeys(("alpha", "eps_iter", "eps_step", "stepsize", "lr"), "step_size"),
    **dict.fromkeys(("nb_iter", "n_iter", "num_iter", "iters", "iterations", "max_iter", "n_steps"), "steps"),
    **dict.fromkeys(("n_queries", "max_queries"), "queries"),
    **dict.fromkeys(("rand_init", "random_init"), "random_start"),
    **dict.fromkeys(("ord", "p"), "norm"),
    "eps": "epsilon",
    "eot_iter": "samples",
}


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_counts(**counts: object) -> tuple[int, ...]:
    """Counts as Python integers. Raises ValueError unless every value is a whole number from 1 on."""
    for name, value in counts.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        require(whole and int(value) >= 1, f"{name}: a whole number from 1 on is needed, not {value!r}")  # type: ignore[call-overload]
    return tuple(operator.index(value) for value in counts.values())  # type: ignore[arg-type]


def is_number(value: object) -> bool:
    """Whether `value` is a finite number: of Python, of NumPy or a tensor without dimensions."""
    if isinstance(value, Tensor):
        value = value.item() if value.dim() == 0 else None
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def require_network(model: object, name: str = "model") -> None:
    """Raise ValueError, which names the argument, unless `model` is an nn.Module."""
    require(
        isinstance(model, nn.Module),
        f"{name}: an nn.Module is needed, because attacks put it into eval mode and restore it, not a "
        f"{type(model).__name__}; call a function from the forward method of a module of your own",
    )


def floating_type(model: nn.Module) -> torch.dtype | None:
    """Type of the first floating-point parameter, in which the network takes its images; None if there is none."""
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # not the 8-bit types of quantized weights
    return next((each.dtype for each in model.parameters() if each.dtype in types), None)


def device_of(model: nn.Module, images: Tensor) -> torch.device:
    """Device of the network, or of the images if it holds no tensor."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else images.device


def arguments(kind: type) -> dict[str, Any]:
    """Defaults of all arguments of an attack except the network, by name; those of its base classes are included."""
    return dict(_defaults(kind))


@functools.cache
def _defaults(kind: type) -> Mapping[str, Any]:
    defaults: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[2:]  # type: ignore[misc]
            for each in parameters:
                if each.kind is not each.VAR_KEYWORD:
                    defaults.setdefault(each.name, each.default)
    fixed: Mapping[str, str] = getattr(kind, "fixed", {})
    return {name: default for name, default in defaults.items() if name not in fixed}


class Named:
    """Base class that refuses arguments which the attack does not take, and names the one that is meant."""

    #: Arguments of base classes that the attack does not take, each with the reason.
    fixed: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *_: object, **named: object) -> Self:
        known = ["model", *arguments(cls)] if named else []
        for name in named.keys() - set(known):
            ours = _OURS.get(name, name)
            if ours in cls.fixed:
                raise TypeError(f"{name}: {cls.__name__} does not take this argument, because {cls.fixed[ours]}")
            if name in ("targeted", "targets", "target"):
                hint = " Give the classes to the call: attack(images, labels, targets=classes)."
            elif name in _OURS:
                hint = f" Did you mean {ours!r}?" if ours in known else ""
            else:
                hint = _names.nearest(name, known)
            raise TypeError(f"{cls.__name__} takes no {name!r}.{hint} It takes {', '.join(known)}.")
        return super().__new__(cls)


def read(images: Any, labels: Any = None, gradients: bool = True) -> tuple[Tensor, Tensor]:
    """Images and labels as tensors, on the devices on which they are given.

    Args:
        images: (n, ...) in [0, 1], a tensor or an array; or, without `labels`, an iterable of batches whose first two
            entries are images and labels, such as a DataLoader. Batches are joined in memory.
        labels: (n,) whole numbers: a tensor, an array or a list.
        gradients: whether the caller needs gradients, which `torch.inference_mode()` rules out.

    Returns:
        Images (n, ...), float32 or float64 (half precision becomes float32), clamped to [0, 1] where they leave it by
        no more than rounding; and labels (n,) int64.

    Raises:
        ValueError: images or labels have another shape, type or range.
        RuntimeError: called inside `torch.inference_mode()`, although gradients are needed.
    """
    if gradients and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "attacks need gradients, which torch.inference_mode() rules out: attack outside of it (torch.no_grad() is "
            "no hindrance)"
        )
    if labels is None:
        images, labels = _joined(images)
    images, labels = _tensor(images, "images").detach(), _tensor(labels, "labels").detach()
    require(images.dim() >= 2 and len(images) > 0, f"images: (n, ...) with n > 0 is needed, not {tuple(images.shape)}")
    require(
        images.is_floating_point(),
        f"images: values from 0 to 1 in float32 are needed, not {images.dtype}; for pixels from 0 to 255 give "
        "images / 255",
    )
    require(
        labels.shape == images.shape[:1],
        f"labels: one class per image, shape ({len(images)},), is needed, not shape {tuple(labels.shape)}"
        + ("; of one-hot labels give labels.argmax(1)" if labels.dim() == 2 < labels.shape[1] + 1 else ""),
    )
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    if images.is_inference():
        images = images.clone()
    low, high = float(images.min()), float(images.max())
    require(
        low >= -ROUNDING and high <= 1 + ROUNDING,  # false if a value is NaN
        f"images: values from 0 to 1 are needed, not from {low:.6g} to {high:.6g}. If the network expects normalised "
        "images, attack biotorch.robustness.Normalised(model, mean, std) with images that are not normalised",
    )
    return images.clamp(0, 1) if low < 0 or high > 1 else images, _classes(labels, "labels")


def read_pair(data: Any, gradients: bool = True) -> tuple[Tensor, Tensor]:
    """Images and labels of a pair of them, a tuple or a list, or of an iterable of batches; see `read`."""
    pair = isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple | list)
    images, labels = data if pair else (data, None)
    return read(images, labels, gradients)


def read_targets(targets: Any, labels: Tensor, abstain: int | None) -> Tensor | TargetName:
    """Target classes (n,) int64 of images with `labels` (n,), or the name by which each batch chooses them.

    Raises:
        ValueError: the name is unknown, or a target is no class, the image's own label or the reject class.
    """
    if isinstance(targets, str):
        known = ("random", "least_likely", "next")
        require(targets in known, f"targets: classes or one of {', '.join(known)} are needed, not {targets!r}")
        return targets  # type: ignore[return-value]
    found = _tensor(targets, "targets").detach().to(labels.device)
    require(
        found.shape == labels.shape,
        f"targets: one class per image, shape ({len(labels)},), is needed, not shape {tuple(found.shape)}",
    )
    found = _classes(found, "targets")
    same = found == labels
    require(not bool(same.any()), f"targets: {int(same.sum())} images have their own label as target")
    require(abstain is None or not bool((found == abstain).any()), f"targets: {abstain} is the reject class (abstain)")
    return found


def _classes(values: Tensor, name: str) -> Tensor:
    whole = not values.is_floating_point() and not values.is_complex()
    require(whole, f"{name}: whole numbers are needed (int64), not {values.dtype}; give {name}.long()")
    values = values.to(torch.int64)
    require(int(values.min()) >= 0, f"{name}: classes from 0 on are needed, not {int(values.min())}")
    return values


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__array__"):
        import numpy

        value = numpy.array(value)  # a copy, because torch refuses some arrays (read-only, reversed)
    elif name == "images":
        raise ValueError(
            "images: a tensor or an array (n, ...) with labels is needed, or an iterable of batches (a DataLoader) "
            f"without, not a {type(value).__name__}"
        )
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: a tensor or numbers are needed ({error})") from error


def _joined(batches: Any) -> tuple[Tensor, Tensor]:
    """Images (n, ...) and labels (n,) of an iterable of batches."""
    require(not isinstance(batches, Dataset), "images: wrap a Dataset in torch.utils.data.DataLoader")
    require(
        isinstance(batches, Iterable) and not isinstance(batches, Tensor | Mapping) and not hasattr(batches, "dtype"),
        f"labels: they are needed beside images that are a {type(batches).__name__}; only an iterable of batches "
        "(a DataLoader) goes without",
    )
    found = []
    for batch in batches:
        require(
            isinstance(batch, tuple | list) and len(batch) >= 2,
            f"images: every batch must be a pair of images and labels, not a {type(batch).__name__}",
        )
        found.append((_tensor(batch[0], "images"), _tensor(batch[1], "labels")))
    require(bool(found), "images: the iterable holds no batch")
    images, labels = zip(*found, strict=True)
    return torch.cat(images), torch.cat(labels)
