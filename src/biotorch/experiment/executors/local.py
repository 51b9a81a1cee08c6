"""Several processes on this machine, each with its own threads and, where there are any, its own GPU."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch

from biotorch.errors import ConfigError, Failure, Interrupted
from biotorch.experiment.executors.base import Ended, Executor, Task, execute
from biotorch.training.distributed import one_of_several

#: Seconds that a process may take to save and go, before it is killed.
_PATIENCE = 60.0


class Local(Executor):
    """`jobs` worker processes, which take one task after another.

    A worker that dies (out of memory, a crash of a library) breaks its task alone: another one takes its place.

    Args:
        jobs: workers.
        threads: of each; default: the cores of this machine shared out.
    """

    def __init__(self, jobs: int, threads: int | None = None) -> None:
        self.jobs, self.threads = jobs, threads or max(1, cores() // jobs)
        self._left: deque[Task] = deque()
        self._workers: list[_Worker] = []
        self._messages: list[str] = []
        self._stopping = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Start the workers.

        Raises:
            ConfigError: a point is to run on several devices, or on one that its worker does not see, or this process
                is one of several itself.
        """
        if one_of_several():
            raise ConfigError(
                "--jobs: torchrun or Slurm has started the processes of one run; run points at once without it"
            )
        for task in tasks:
            gpus = task.config.infrastructure.gpus
            if gpus not in (-1, 0, [0]) or task.config.infrastructure.num_nodes > 1:
                raise ConfigError(
                    f"infrastructure.gpus: {gpus}: of several points at once each has one device, which it sees as 0: "
                    "write 0, or run the points one after another with --jobs 1"
                )
        self._left.extend(tasks)
        self._workers = [_Worker(number, self.threads) for number in range(min(self.jobs, len(tasks)))]
        for worker in self._workers:
            worker.give(self._left.popleft())

    def running(self) -> list[Task]:
        return [worker.task for worker in self._workers if worker.task is not None]

    def wait(self, seconds: float) -> list[Ended]:
        busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
        ended = []
        for connection in wait(list(busy), seconds):
            worker = busy[connection]  # type: ignore[index]
            task = worker.task
            assert task is not None
            try:
                kind, content = worker.connection.recv()
            except EOFError:
                worker.end()
                self._workers.remove(worker)
                if self._stopping:
                    continue
                ended.append(Ended(task, Failure("defect", f"its process died ({worker.fate})")))
                worker = _Worker(worker.number, self.threads)
                self._workers.append(worker)
            else:
                if kind == "warning":
                    self._messages.append(content)
                    continue
                worker.task = None
                ended.append(Ended(task, content))
            if self._left and not self._stopping:
                worker.give(self._left.popleft())
        return ended

    def messages(self) -> list[str]:
        found, self._messages = self._messages, []
        return found

    def stop(self) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.stop()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not self._stopping:
            self.stop()
        for worker in self._workers:
            worker.end()


class _Worker:
    """One process, and the task that it has."""

    def __init__(self, number: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, nor threads of OpenMP
        self.number = number
        self.task: Task | None = None
        self.connection, theirs = context.Pipe()
        self._stopped = False
        with _environment(_shared_out(number, threads)):
            self._process: BaseProcess = context.Process(target=_work, args=(theirs, threads), daemon=False)
            self._process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # it has died: `wait` finds that out
            self.connection.send(task)

    def stop(self) -> None:
        """Ask it to save and go; the second time, not to save."""
        if self._process.is_alive() and self.task is not None:
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end: at once without a task, else after its checkpoint."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(None)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    @property
    def fate(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
        return f"exit code {code}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shared_out(number: int, threads: int) -> dict[str, str]:
    """What the environment of worker `number` says: its threads, and its GPU where there are any."""
    environment = {"OMP_NUM_THREADS": str(threads)}
    if torch.cuda.device_count() > 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(each) for each in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return environment


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Changes of this process's environment while inside, for a process that is started there."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# In the worker ---------------------------------------------------------------------------------------


def _work(connection: Connection, threads: int) -> None:
    """Take tasks until there is none left."""
    if hasattr(os, "setsid"):  # Ctrl-C is for the process that the user sees, which tells this one
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _go_with_parent()
    torch.set_num_threads(threads)

    def warn(message: Warning | str, *where: Any, **kwargs: Any) -> None:
        connection.send(("warning", str(message)))

    warnings.showwarning = warn
    with contextlib.suppress(EOFError, Interrupted):
        while (task := connection.recv()) is not None:
            connection.send(("ended", execute(task)))


def _go_with_parent() -> None:
    """When the parent has died, however it did, save and go, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
