"""Copies, moves and saved states of a layer under a rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from biotorch.layers.state import RuleState, keep_up
from biotorch.layers.tensors import feedback_name, is_feedback, noisy_name
from biotorch.layers.updates import tell_others


class SavedState(RuleState):
    """A layer whose rule and B go along when it is copied, pickled, moved, saved and loaded."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The type that torch gives a parametrized layer refuses `__getstate__`, which it takes for pickling.
        replica = memo[id(self)] = self.__new__(type(self))
        for value in vars(self).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # by a hook (pruning), which will compute it again
                memo[id(value)] = value.detach().clone()
        kind: type[Self] = parametrize.type_before_parametrizations(self)
        replica.__setstate__(copy.deepcopy(kind.__getstate__(self), memo))
        return replica

    def __getstate__(self) -> dict[str, Any]:
        self.settle(at_once=True)
        return {**super().__getstate__(), "use_checks": None}  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "rule" in state and "connections" not in state:
            raise RuntimeError("the network was pickled by an earlier version of biotorch: load its state_dict instead")
        if any(connection.is_bound() for connection in self.connections):  # a shallow copy has the original's
            self.connections = [copy.copy(connection) for connection in self.connections]
        for connection in self.connections:
            connection.bind(self)
        for connection in self.connections:
            keep_up(connection)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._overlook()
        empty = [name for name, tensor in self._saved_feedback().items() if tensor.is_meta]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for connection in self.connections:
            connection.rejoin()
        if empty:
            self._leave_meta(empty)
        return self

    def _saved_feedback(self) -> dict[str, Tensor]:
        """The tensors of B, and norms of W, that a state_dict holds."""
        own = {**self._parameters, **self._buffers}
        names = [name for name in own if is_feedback(name) and name not in self._non_persistent_buffers_set]
        return {name: tensor for name in names if (tensor := own[name]) is not None}

    @torch.no_grad()
    def _leave_meta(self, empty: list[str]) -> None:
        """Mark tensors that `to_empty` made of those without values, so that no pass uses them as they are."""
        own = self._saved_feedback()
        self.undrawn = [name for name in empty if not own[name].is_meta and own[name].is_floating_point()]
        for name in self.undrawn:
            own[name].fill_(torch.nan)
        for connection in self.connections:
            if (name := noisy_name(connection.parameter)) in empty:
                own[name].copy_(torch.tensor([connection.seed, 0]))
        if self.rule.has_update():
            for connection in self.connections:
                tell_others(connection)

    def require_drawn(self) -> None:
        """Raise RuntimeError if B has had no values since a conversion on the meta device."""
        own = self._saved_feedback()
        self.undrawn = [name for name in self.undrawn if own[name].isnan().any()]
        if self.undrawn:
            raise RuntimeError(
                f"{self.label or type(self).__name__}: its {', '.join(self.undrawn)} has no values, because it was "
                "converted on the meta device: load a state_dict with B, or convert the network again now"
            )

    def _overlook(self) -> None:
        """Settle all earlier updates, and do not count the coming change of W as an update."""
        self.settle(at_once=True)
        for connection in self.connections:
            if connection.follower is not None:
                connection.follower.overlook = True

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.settle(at_once=True)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rule.has_update():
            # Seed and number determine the next draw, so a resumed run draws the same.
            seeds, numbers = zip(*((each.owner.seed, each.owner.updates) for each in self.connections), strict=True)
            told = numbers[: 1 if len(set(numbers)) == 1 else None]
            destination[prefix + "feedback_draws"] = torch.tensor([*seeds, *told])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self.use_checks = None  # a parameter may be replaced
        self._overlook()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name, tensor in self._saved_feedback().items():
            loaded = state_dict.get(prefix + name)
            if loaded is not None and loaded.shape != tensor.shape:
                error_msgs.append(
                    f"{prefix}{name}: the loaded feedback has shape {tuple(loaded.shape)}, but this layer's has "
                    f"{tuple(tensor.shape)} under rule {self.rule.name!r}: convert with the rule, options "
                    "and output size that the state was saved with."
                )
        # Earlier versions kept the momenta of an own optimizer for B; they are ignored.
        key, gone = prefix + "feedback_draws", [f"{prefix}{feedback_name(each)}_state_" for each in self.weight_names]
        known = self.rule.learns or self.rule.has_update()
        unexpected_keys[:] = [
            each for each in unexpected_keys if not known or not (each == key or each.startswith(tuple(gone)))
        ]
        if self.rule.has_update() and key in state_dict:
            draws, count = state_dict[key].tolist(), len(self.connections)
            if len(draws) in (count + 1, 2 * count):
                self._load_draws(draws)
            else:
                error_msgs.append(
                    f"{key}: the saved layer has another number of weight matrices; this layer has {count}"
                )
        elif self.rule.has_update() and strict:
            missing_keys.append(key)

    def _load_draws(self, draws: list[int]) -> None:
        count = len(self.connections)
        numbers = draws[count:] * (count if len(draws) == count + 1 else 1)
        for connection, seed, number in zip(self.connections, draws, numbers, strict=False):
            connection.seed, connection.updates, connection.answered = seed, number, number
            tell_others(connection)
