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

from biotorch.auditing.tags import ACTIVATION, CONSTANT, Origin, Tag, Tags, is_activation, is_made_of_parameters

#: Operations that move elements and compute nothing. What they make has the tags of what they read.
_MOVES = frozenset(
    (
        "_to_copy",
        "clone",
        "copy_",
        "cat",
        "stack",
        "repeat",
        "repeat_interleave",
        "flip",
        "roll",
        "constant_pad_nd",
        "slice_scatter",
        "select_scatter",
        "where",
        "masked_fill",
        "masked_fill_",
        "masked_select",
        "contiguous",
        "lift_fresh",
        "lift_fresh_copy",
        "tril",
        "triu",
        "tril_",
        "triu_",
        "_reshape_copy",
        "_unsafe_view",
        "index_put",
        "index_put_",
        "scatter",
        "scatter_",
        "index_copy",
        "index_copy_",
        "detach",
        "_reshape_alias",
        "view_copy",
        "expand_copy",
        "permute_copy",
    )
)
#: Operations that choose elements by an index: (first operand, ...).
_CHOOSE = frozenset(("index", "_unsafe_index", "index_select", "gather", "take"))
#: Lookups and norms. They use a parameter where it belongs to the activation's own unit.
_LOCAL = frozenset(
    (
        "embedding",
        "embedding_bag",
        "_embedding_bag",
        "_embedding_bag_forward_only",
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit_functional",
        "_batch_norm_with_update",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_fused_rms_norm",
        "_prelu_kernel",
    )
)
#: Operations that scale elements and so keep what they were multiplied with.
_SCALES = frozenset(("mul", "mul_", "div", "div_", "neg", "neg_", "add", "add_", "sub", "sub_", "rsub"))
#: Products, which a layer applies to its input.
_PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution"))
#: Fourier transforms sum over units like a reduction.
_SUMS = frozenset(("_fft_r2c", "_fft_c2r", "_fft_c2c", "cumsum"))


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
        for key, parameter in enumerate(parameters):
            self.tags.parameter(parameter, key)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the origin of `tensor` is known."""
        return tensor.layout is not torch.strided or self.tags.know(tensor)

    def adopt(self, tensor: Tensor) -> None:
        """Take a tensor that no operation made as an activation if it requires a gradient, else as a constant."""
        self.tags.put(tensor, ACTIVATION if tensor.requires_grad else CONSTANT)

    def tags_of(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        constant: bool,
        module: nn.Module | None,
    ) -> list[Tag]:
        """The tags of what an operation made, and take note if parameters met activations.

        Args:
            func: the operation.
            args: its positional arguments.
            kwargs: its keyword arguments.
            operands: the tensors among its arguments.
            results: the tensors that it made or wrote to.
            constant: whether its results are known not to depend on the inputs.
            module: the innermost module that is running.
        """
        name = _name(func)
        tags = [self._tag(each) for each in operands]
        made = [(each, tag) for each, tag in zip(operands, tags, strict=True) if is_made_of_parameters(tag)]
        active = [each for each, tag in zip(operands, tags, strict=True) if is_activation(tag)]
        origins = [origin for _, tag in made for origin in self.tags.origins_of(tag)]
        if name in _MOVES:
            return [self._moved(func, args, kwargs, tags, origins, result) for result in results]
        if name in _CHOOSE:
            return [self._chosen(func, args, kwargs, result) for result in results]
        tag: Tag
        if any(origin.mixed for origin in origins) and not _has(func, torch.Tag.pointwise):
            self._meet((origin for origin in origins if not origin.mixed), module)
            tag = ACTIVATION
        elif not active and name in _PRODUCTS and module is not None and module in self._layers:
            tag = self._applied(module, origins)
        elif not active or constant:
            tag = self.tags.made_of(origins, computed=True) if origins else CONSTANT
        elif name in _LOCAL:
            tag = ACTIVATION
        elif _has(func, torch.Tag.pointwise):
            tag = self._pointwise(name, made, active, origins, tags, results, module)
        else:
            tag = ACTIVATION
            weights = (
                made
                if "scaled_dot_product" not in name
                else [each for each in made if each[0] is not _mask(args, kwargs)]
            )
            for each, own in weights:
                if each.numel() > 1 or each.dim() > 1:
                    self._meet(self.tags.origins_of(own), module)
            if _has(func, torch.Tag.reduction) or name in _SUMS:
                self._sum(operands[0], tags[0], args, kwargs, module)
        return [tag] * len(results)

    def _applied(self, layer: nn.Module, origins: list[Origin]) -> Tag:
        """The tag of a layer's output for an input that is no activation.

        Of a constant (coordinates, say) a layer makes activations. What it makes of a parameter is made of parameters.
        """
        roots = frozenset(key for origin in origins for key in origin.roots)
        if roots - self._layers[layer]:
            self.applied.append((layer, roots))
            return self.tags.made_of(origins, computed=True)
        self._meet(origins, layer)
        return ACTIVATION

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
        name = _name(func)
        if name in ("_to_copy", "clone", "contiguous", "lift_fresh", "lift_fresh_copy", "detach"):
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
        by_activation = any(
            is_activation(self._tag(each))
            for each in torch.utils._pytree.tree_leaves((rest, kwargs))
            if isinstance(each, Tensor)
        )
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
            scaled = [tag for tag in tags if isinstance(tag, Tensor)]
            if len(scaled) == 1 and len(active) == 1 and name in _SCALES and scaled[0].shape == results[0].shape:
                return scaled[0]
            return ACTIVATION
        shape = results[0].shape
        spread = [each for each, _ in made if any(_fans_out(x, each, shape) for x in active)]
        if spread:
            self._meet(origins, module)
            if all(any(_fans_out(x, each, shape) for each, _ in made) for x in active):
                mixed = [origin._replace(mixed=True) for origin in origins]
                return self.tags.made_of(mixed, computed=True)
        gains = [(each, tag) for each, tag in made if each.numel() > 1]
        if name in ("mul", "mul_", "div", "div_") and gains:
            return -self.tags.elements(gains[0][0]).expand(shape).clone()
        return ACTIVATION

    def _sum(self, x: Tensor, tag: Tag, args: Any, kwargs: Any, module: nn.Module | None) -> None:
        """Take note if a sum over units follows gains that differ among these units: together they are a weight."""
        if not isinstance(tag, Tensor) or not bool((tag < ACTIVATION).any()):
            return
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = given if isinstance(given, int | list | tuple) and given not in ([], ()) else list(range(x.dim()))
        if bool((tag.amax(dims) != tag.amin(dims)).any()):
            self._meet(self.tags.origins_of(tag), module)


def _name(func: Any) -> str:
    return func._schema.name.partition("::")[2] if hasattr(func, "_schema") else str(func)


def _has(func: Any, tag: torch.Tag) -> bool:
    return tag in getattr(func, "tags", ())


def _kind(tag: Tag) -> int:
    return 1 if isinstance(tag, int) and tag > 0 else int(tag)


def _mask(args: Any, kwargs: Any) -> Any:
    """The mask of an attention kernel, which is added to the scores."""
    for value in (kwargs.get("attn_mask"), kwargs.get("attn_bias"), *args[3:]):
        if isinstance(value, Tensor):
            return value
    return None


def _fans_out(x: Tensor, matrix: Tensor, shape: Sequence[int]) -> bool:
    """Whether one element of `x` meets many elements of a matrix, or of its row, if both are broadcast to `shape`."""
    x, spread = x.expand(shape), matrix.expand(shape)
    varying = [dim for dim, size in enumerate(shape) if size > 1 and spread.stride(dim) != 0]
    part = matrix.numel() * matrix.element_size() < matrix.untyped_storage().nbytes()
    return len(varying) > (0 if part else 1) and any(x.stride(dim) == 0 for dim in varying)
