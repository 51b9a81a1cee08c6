"""Ctrl-C and SIGTERM (Slurm's, before it takes the machine away): finish the step, save, go."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from biotorch.errors import Interrupted

#: Seconds within which a second signal is the first, sent twice.
_REPEATED = 1.0


class StopRequest:
    """The signal that has asked to stop, if one has.

    It stops what runs at once, but for what runs inside `deferred`: that looks at `number` when it can stop.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred, self._since = False, 0.0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """For a training, which saves before it goes."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # The second one does not wait for anything; but torchrun repeats what a terminal has sent already.
        again = self.number is not None and now - self._since > _REPEATED
        if self.number is None:
            self.number, self._since = number, now
        if again or not self._deferred:
            raise Interrupted(self.number)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while inside.

    In a thread other than the main one signals cannot be caught: there the request never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
