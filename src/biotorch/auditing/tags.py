"""Origin of every element of every tensor in a forward pass: a constant, a parameter, or an activation.

The tags live per storage, so that views, in-place writes, `.data` and detached copies are followed without effort.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

#: Tags of elements that no input and no parameter changes, and of those that an input changes. A positive tag names an
#: element computed from parameters alone, as `serial << SHIFT | index`. Its negative is an activation that was
#: multiplied by this element alone.
CONSTANT, ACTIVATION = 0, -1
SHIFT = 40

#: The tags of a tensor: one for all elements, or an int64 tensor of its shape.
Tag = int | Tensor


class Origin(NamedTuple):
    """Origin of a tensor made of parameters.

    Attributes:
        roots: keys of the parameters that it was computed from.
        computed: whether it is more than a rearrangement of one parameter.
        mixed: whether activations scale its elements, as a gate or a norm scales those of a weight.
        scaled: the storage of the activations that it multiplied, if it was a gain.
    """

    roots: frozenset[int]
    computed: bool = True
    mixed: bool = False
    scaled: int = 0


class _Shadow:
    def __init__(self, tensor: Tensor, tag: Tag) -> None:
        storage = tensor.untyped_storage()
        #: Keeps the key of the storage from being used again.
        self.reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self.start, self.bytes, self.size = storage.data_ptr(), storage.nbytes(), tensor.element_size()
        self.tag = tag


class Tags:
    """The tags of all tensors of a pass, by storage."""

    def __init__(self) -> None:
        self.origins: list[Origin] = [Origin(frozenset())]
        self._shadows: dict[int, _Shadow] = {}

    def made_of(self, origins: Iterable[Origin], computed: bool) -> int:
        """The tag of a new tensor that is made of tensors of these origins."""
        found = list(origins)
        self.origins.append(
            Origin(
                frozenset().union(*(each.roots for each in found)),
                computed or any(each.computed for each in found) or len(found) > 1,
                any(each.mixed for each in found),
            )
        )
        return (len(self.origins) - 1) << SHIFT

    def gains(self, elements: Tensor, activation: Tensor) -> Tensor:
        """The tags of activations that were multiplied with the elements, given by their tags, of a parameter."""
        found = self.origins_of(elements)
        base = self.made_of(found, computed=any(each.computed for each in found))
        self.origins[-1] = self.origins[-1]._replace(scaled=activation.untyped_storage()._cdata)
        return -(base + (elements & ((1 << SHIFT) - 1)))

    def parameter(self, tensor: Tensor, key: int) -> None:
        """Tag `tensor` as the parameter `key`."""
        self.origins.append(Origin(frozenset([key]), computed=False))
        self.put(tensor, (len(self.origins) - 1) << SHIFT)

    def origins_of(self, tag: Tag) -> list[Origin]:
        """Origins of the elements that are made of parameters, or were multiplied by such."""
        if isinstance(tag, int):
            return [self.origins[tag >> SHIFT]] if tag > 0 else []
        serials = set((tag.abs() >> SHIFT).flatten().tolist())
        return [self.origins[serial] for serial in serials if serial]

    def know(self, tensor: Tensor) -> bool:
        """Whether the storage of `tensor` has tags."""
        return self._find(tensor) is not None

    def get(self, tensor: Tensor) -> Tag | None:
        """The tag of `tensor`; None if nothing is known of its storage."""
        shadow = self._find(tensor)
        if shadow is None or isinstance(shadow.tag, int):
            return None if shadow is None else shadow.tag
        return _view(self._flat(shadow), shadow, tensor)

    def elements(self, tensor: Tensor) -> Tensor:
        """The tags of `tensor`, element by element."""
        shadow = self._find(tensor)
        assert shadow is not None
        return _view(self._flat(shadow), shadow, tensor)

    def put(self, tensor: Tensor, tag: Tag) -> None:
        """Tag the elements of `tensor`; other elements of its storage keep their tags."""
        shadow = self._find(tensor)
        whole = tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
        if shadow is None or (whole and isinstance(tag, int)):
            entry = tag if isinstance(tag, int) else CONSTANT
            shadow = self._shadows[tensor.untyped_storage()._cdata] = _Shadow(tensor, entry)
        if isinstance(tag, int) and isinstance(shadow.tag, int) and shadow.tag == tag:
            return
        shadow.tag = self._flat(shadow)
        _view(shadow.tag, shadow, tensor).copy_(torch.as_tensor(tag, device=shadow.tag.device))

    def _find(self, tensor: Tensor) -> _Shadow | None:
        storage = tensor.untyped_storage()
        if (shadow := self._shadows.get(storage._cdata)) is not None:
            return shadow
        start = storage.data_ptr()  # another storage object on the same memory, as numpy makes it
        same = (each for each in self._shadows.values() if each.start <= start < each.start + each.bytes)
        return next((each for each in same if start and not each.reference.expired()), None)  # type: ignore[no-untyped-call]

    def _flat(self, shadow: _Shadow) -> Tensor:
        if isinstance(shadow.tag, Tensor):
            return shadow.tag
        count = shadow.bytes // shadow.size
        # Elements of one parameter have tags of their own, others share one.
        return torch.arange(count) + shadow.tag if shadow.tag > 0 else torch.full((count,), shadow.tag)


def _view(flat: Tensor, shadow: _Shadow, tensor: Tensor) -> Tensor:
    """The part of a storage's tags that belongs to `tensor`."""
    if (ratio := tensor.element_size() / shadow.size) > 1:
        flat = flat[:: int(ratio)]  # a complex view of pairs of real numbers
    elif ratio < 1:
        flat = flat.repeat_interleave(int(1 / ratio))
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def is_made_of_parameters(tag: Any) -> bool:
    """Whether elements are made of parameters and none of them is an activation."""
    return tag > 0 if isinstance(tag, int) else bool((tag >= 0).all() and (tag > 0).any())


def is_activation(tag: Any) -> bool:
    """Whether some of the elements are activations."""
    return tag < 0 if isinstance(tag, int) else bool((tag < 0).any())
