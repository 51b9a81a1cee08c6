"""Handling of Ctrl-C and SIGTERM (which Slurm sends before it kills a job): finish the step, save, stop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from biotorch.errors import Interrupted

#: Seconds within which a second signal counts as a repetition of the first.
_REPEATED = 1.0


class StopRequest:
    """Request to stop, made by a signal; `number` is the signal, or None while there is none.

    A signal interrupts the running code at once, except inside `deferred`, where the code checks `number` itself.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred, self._since = False, 0.0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Context in which the first signal only sets `number`, so that a training can save before it stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # A second signal interrupts at once, but torchrun repeats a signal that the terminal has already sent.
        again = self.number is not None and now - self._since > _REPEATED
        if self.number is None:
            self.number, self._since = number, now
        if again or not self._deferred:
            raise Interrupted(self.number)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Context in which SIGINT and SIGTERM become a request to stop.

    Signals can be caught only in the main thread. In other threads the request stays empty.
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
