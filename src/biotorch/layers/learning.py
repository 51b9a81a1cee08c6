"""Check that a B which is a parameter learns; an error if it gets gradients but no optimizer updates it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

from torch import Tensor, nn

from biotorch.layers.connection import Connection
from biotorch.layers.watching import PATIENCE, Watch, differs, find_optimizers, is_paused, sample, uncompiled, watch


class Learner:
    """Checks that a B which gets gradients is updated whenever W is updated."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.ref(connection)
        self._watches: list[Watch] = []
        self._samples: list[Tensor] = []
        #: Indices in `_watches` of the parameters that have learned since the last look.
        self._learned: set[int] = set()
        self._advised = False
        self.look()

    @contextlib.contextmanager
    def rescaling(self) -> Iterator[None]:
        """Do not count changes of B inside the `with` block, where B is rescaled together with W, as learning.

        Learning before the block still counts.
        """
        self._learned |= {i for i, each in enumerate(self._watches) if each.changes != self._seen[i]} - {0}
        yield
        for i, each in enumerate(self._watches[1:], 1):
            self._seen[i] = each.changes
            parameter = each.parameter()
            if i < len(self._samples) and parameter is not None:
                self._samples[i] = sample(parameter)

    def on_gradient(self) -> None:
        """Look after two rounds of gradients without a look, because compiled graphs do not look in the forward."""
        self._unlooked += 1
        connection = self._connection()
        if self._unlooked >= len(self._watches) and connection is not None and connection.layer.training:
            self.look()

    @uncompiled
    def look(self) -> None:
        """Find out which of W and B have changed since the last call, at the beginning of a training forward pass.

        Raises:
            RuntimeError: W was updated twice, but B, which had gradients, was not.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or is_paused():
            return
        connection.thaw_with_weight()
        parameters = [connection.trained, *(each for each in connection.learned if each.requires_grad)]
        watches = [watch(parameter) for parameter in parameters]
        if watches != self._watches:
            self._watches, self._seen, self._gradients = watches, [each.changes for each in watches], 0
            self._idle = self._silent = 0
            for each in watches[1:]:
                each.learners.add(self)
        self._unlooked = 0
        seen, self._seen = self._seen, [each.changes for each in watches]
        gradients, self._gradients = self._gradients, sum(each.gradients for each in watches[1:])
        if gradients == self._gradients:
            return
        learned, self._learned = self._learned, set()
        changed = [now != seen[i] or i in learned for i, now in enumerate(self._seen)]
        if changed[0] and watches[0].steps > 0 and not self._advised:  # no advice for updates by hand
            self._advised = True
            connection.layer.rule.check_decay(connection.name, watches[0].decay)
        if any(changed):
            self._silent, self._idle = 0, self._idle + 1 if changed[0] and not all(changed) else 0
        else:
            self._silent += 1  # perhaps a change through .data
        if 1 in (self._silent, self._idle):
            self._samples = [sample(each) for each in parameters]
        elif self._idle > 1 or self._silent == PATIENCE:
            self._require_learning(connection, parameters)
            self._silent = 0

    def _require_learning(self, connection: Connection, parameters: list[nn.Parameter]) -> None:
        moved = [differs(earlier, each) for earlier, each in zip(self._samples, parameters, strict=True)]
        stuck = [each for each, its in zip(self._watches[1:], moved[1:], strict=True) if not its]
        if not moved[0] or (self._silent and len(stuck) < len(moved) - 1):
            return
        if not all(each.is_held for each in stuck):
            find_optimizers()
        if not all(each.is_held for each in stuck):  # an optimizer that holds B may step on it more rarely
            raise RuntimeError(
                f"{connection.name}: W learns but its B does not: rule {connection.layer.rule.name!r} gives B "
                "gradients, but no optimizer updates it. Build the optimizer after `convert`, from all parameters, or "
                "add a parameter group for biotorch.feedback_parameters(model). To keep B fixed on purpose, freeze "
                "it: requires_grad_(False)"
            )
