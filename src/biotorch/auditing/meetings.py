"""Meetings of parameters and activations: which operations use a parameter, or a matrix computed of some, as a weight.

Local uses are left out, because their backward needs nothing of another unit: sums, concatenations, lookups, norms, and
gains, which multiply each activation by one number of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from biotorch.auditing.operations import (
    CHOOSE,
    LOCAL,
    MOVES,
    PRODUCTS,
    SCALES,
    fans_out,
    is_added,
    is_pointwise,
    is_sum,
    name_of,
)
from biotorch.auditing.tags import ACTIVATION, CONSTANT, SHIFT, Origin, Tag, Tags, is_activation, is_made_of_parameters
from biotorch.conversion.nested import leaves


class Meeting(NamedTuple):
    """A use of parameters as a weight: the parameters' keys, and the innermost module that was running."""

    origin: Origin
    module: nn.Module | None


class Meetings:
    """The tags of a pass, and the meetings of parameters with activations that its operations bring about.

    Args:
        parameters: the parameters; their keys are their numbers.
        layers: the parameters (keys) of each layer of a type that has a feedback version.
    """

    def __init__(self, parameters: Sequence[Tensor], layers: Mapping[nn.Module, frozenset[int]]) -> None:
        self.tags = Tags()
        self.found: set[Meeting] = set()
        #: Layers that were applied to what is made of parameters: the layer, and its parameters together with these.
        self.applied: list[tuple[nn.Module, frozenset[int]]] = []
        self._layers = layers
        #: Storages of tensors that no operation made.
        self._strangers: set[int] = set()
        for key, parameter in enumerate(parameters):
            self.tags.parameter(parameter, key)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the origin of `tensor` is known."""
        return tensor.layout is not torch.strided or self.tags.know(tensor)

    def adopt(self, tensor: Tensor) -> None:
        """Take a tensor that no operation made as an activation if it requires a gradient, else as a constant."""
        self.tags.put(tensor, ACTIVATION if tensor.requires_grad else CONSTANT)
        self._strangers.add(tensor.untyped_storage()._cdata)

    def hides(self, operands: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
        """Whether an operation takes something out of sight that was made of parameters, in a way of its own.

        This is a constant that requires a gradient (numpy made it of a weight), or a sparse tensor.
        """
        dense = [each for each in operands if each.layout is torch.strided]
        constant = any(each.requires_grad and each.untyped_storage()._cdata in self._strangers for each in dense)
        sparse = any(each.layout is not torch.strided for each in results)
        return constant or (sparse and any(is_made_of_parameters(self._tag(each)) for each in dense))

    def tags_of(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        constant: Sequence[bool],
        module: nn.Module | None,
    ) -> list[Tag]:
        """The tags of what an operation made, and take note if parameters met activations.

        Args:
            func: the operation.
            args: its positional arguments.
            kwargs: its keyword arguments.
            operands: the tensors among its arguments.
            results: the tensors that it made or wrote to.
            constant: for each of `results`, whether it is known not to depend on the inputs.
            module: the innermost module that is running.
        """
        name = name_of(func)
        tags = [self._tag(each) for each in operands]
        made = [(each, tag) for each, tag in zip(operands, tags, strict=True) if is_made_of_parameters(tag)]
        active = [each for each, tag in zip(operands, tags, strict=True) if is_activation(tag)]
        origins = [origin for _, tag in made for origin in self.tags.origins_of(tag)]
        if name in MOVES:
            return [self._moved(func, args, kwargs, tags, origins, result) for result in results]
        if name in CHOOSE:
            return [self._chosen(func, args, kwargs, result) for result in results]
        tag: Tag
        if any(origin.mixed for origin in origins) and not is_pointwise(func):
            self._meet(origins, module)
            tag = ACTIVATION
        elif not active and name in PRODUCTS and module is not None and module in self._layers:
            tag = self._applied(module, origins)
        elif not active:
            tag = self.tags.made_of(origins, computed=True) if origins else CONSTANT
        elif name in LOCAL:
            tag = ACTIVATION
        elif is_pointwise(func):
            tag = self._pointwise(name, made, active, origins, tags, results, module)
        else:
            tag = ACTIVATION
            for each, own in made:
                if (each.numel() > 1 or each.dim() > 1) and not is_added(name, each, args, kwargs):
                    self._meet(self.tags.origins_of(own), module)
            if is_sum(func):
                self._sum(operands[0], tags[0], args, kwargs, module)
        fixed: Tag = CONSTANT
        if active and any(constant):
            fixed = self.tags.made_of(origins, computed=True) if origins else CONSTANT
        return [fixed if active and same else tag for same in constant]

    def _applied(self, layer: nn.Module, origins: list[Origin]) -> Tag:
        """The tag of a layer's output for an input that is no activation.

        It is made of parameters: a weight, if it is multiplied with activations.
        """
        self.applied.append((layer, frozenset(key for origin in origins for key in origin.roots)))
        return self.tags.made_of(origins, computed=True)

    def _tag(self, tensor: Tensor) -> Tag:
        if tensor.layout is not torch.strided:
            return ACTIVATION  # sparse inputs
        tag = self.tags.get(tensor)
        assert tag is not None
        return tag

    def _meet(self, origins: Iterable[Origin], module: nn.Module | None) -> None:
        self.found.update(Meeting(origin, module) for origin in origins)

    def _moved(self, func: Any, args: Any, kwargs: Any, tags: list[Tag], origins: list[Origin], result: Tensor) -> Tag:
        """The tags of a result whose elements were only moved."""
        if all(isinstance(tag, int) for tag in tags) and len({_kind(tag) for tag in tags}) == 1:
            if origins:
                return self.tags.made_of(origins, computed=len(set(origins)) > 1)
            return tags[0] if tags else CONSTANT
        if not any(is_made_of_parameters(tag) or isinstance(tag, Tensor) for tag in tags):
            return ACTIVATION if any(tag == ACTIVATION for tag in tags) else CONSTANT
        moved = self._on_tags(func, args, kwargs)
        return moved if moved.shape == result.shape else ACTIVATION

    def _on_tags(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Run a move on the tags in the place of the elements. Masks and indices stay, and values are constants."""
        name = name_of(func)
        if name in ("_to_copy", "clone", "lift_fresh_copy"):
            return self.tags.elements(args[0]).clone()
        if name == "copy_":
            return self.tags.elements(args[1]).expand(args[0].shape).clone()

        def of(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dtype not in (torch.bool, torch.int64, torch.int32):
                return self.tags.elements(value).clone()
            return value

        args, kwargs = tree_map(of, args), tree_map(of, kwargs)
        if "fill" in name or "pad" in name:
            args = tuple(CONSTANT if isinstance(value, float) else value for value in args)
        found = func(*args, **kwargs)
        assert isinstance(found, Tensor)
        return found

    def _chosen(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> Tag:
        """The tags of elements that an index chose. A row that an activation chooses is an activation, as in a lookup.

        A matrix that an activation chooses, such as the weight of an expert, remains a weight.
        """
        source, *rest = args
        by_activation = any(is_activation(self._tag(each)) for each in leaves((rest, kwargs)))
        tag = self._tag(source)
        if by_activation and source.dim() <= 2:
            return ACTIVATION
        if isinstance(tag, int):
            origins = self.tags.origins_of(tag)
            return self.tags.made_of(origins, computed=False) if origins else tag
        chosen = func(self.tags.elements(source), *rest, **kwargs)
        return chosen if chosen.shape == result.shape else ACTIVATION

    def _pointwise(
        self,
        name: str,
        made: list[tuple[Tensor, Tag]],
        active: list[Tensor],
        origins: list[Origin],
        tags: list[Tag],
        results: Sequence[Tensor],
        module: nn.Module | None,
    ) -> Tag:
        """The tag of an operation on each element of activations and parameters.

        Where one activation meets many elements of a matrix, the matrix is a weight.
        """
        if not made:
            scaled = [tag for tag in tags if isinstance(tag, Tensor) and tag.shape == results[0].shape]
            if len(scaled) == len(active) == 1 and name in SCALES:
                return scaled[0]
            if len(scaled) == 2 and name in ("add", "add_", "sub", "sub_"):
                self._add(scaled[0], scaled[1], module)
            return ACTIVATION
        shape = results[0].shape
        if any(fans_out(x, each, shape) for x in active for each, _ in made):
            if all(any(fans_out(x, each, shape) for each, _ in made) for x in active):
                # A weight, if it is used as a matrix; a gain, if each of its elements meets one activation.
                return self.tags.made_of([origin._replace(mixed=True) for origin in origins], computed=True)
            self._meet(origins, module)
        gains = [each for each, _ in made if each.numel() > 1]
        if name in ("mul", "mul_", "div", "div_") and gains:
            return self.tags.gains(self.tags.elements(gains[0]).expand(shape), active[0])
        return ACTIVATION

    def _add(self, first: Tensor, second: Tensor, module: nn.Module | None) -> None:
        """Take note if elements of one parameter scale activations of one tensor that are then added up."""
        mine, theirs = self.tags.origins_of(first), self.tags.origins_of(second)
        differ = bool(((-first ^ -second) & ((1 << SHIFT) - 1)).any())
        if differ and any(a.scaled == b.scaled and a.roots & b.roots for a in mine for b in theirs):
            self._meet([*mine, *theirs], module)

    def _sum(self, x: Tensor, tag: Tag, args: Any, kwargs: Any, module: nn.Module | None) -> None:
        """Take note if a sum over units follows gains that differ among these units: together they are a weight."""
        if not isinstance(tag, Tensor) or not bool((tag < ACTIVATION).any()):
            return
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = given if isinstance(given, int | list | tuple) and given not in ([], ()) else list(range(x.dim()))
        if bool((tag.amax(dims) != tag.amin(dims)).any()):
            self._meet(self.tags.origins_of(tag), module)


def _kind(tag: Tag) -> int:
    return 1 if isinstance(tag, int) and tag > 0 else int(tag)
