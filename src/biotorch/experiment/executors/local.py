"""Executor of several processes on this machine, each with its own threads and, if there are GPUs, its own GPU."""

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

#: Seconds that a process may take to save and end before it is killed.
_PATIENCE = 60.0


class Local(Executor):
    """Executor with `jobs` worker processes, which take one task after another.

    A worker that dies (out of memory, a crash of a library) breaks only its own task, and a new worker replaces it.

    Args:
        jobs: number of workers.
        threads: threads of each worker. Default: the cores of this machine divided by `jobs`.
    """

    here = True

    def __init__(self, jobs: int, threads: int | None = None) -> None:
        super().__init__()
        if one_of_several():
            raise ConfigError(
                "--jobs: torchrun or Slurm has started the processes of one run; start this command without them to "
                "run several points at once"
            )
        self.jobs, self.threads = jobs, threads or max(1, cores() // jobs)
        self._left: deque[Task] = deque()
        self._workers: list[_Worker] = []
        self._stopping = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Start the workers.

        Raises:
            ConfigError: a point asks for several devices or for one that its worker does not see.
        """
        for task in tasks:
            gpus = task.config.infrastructure.gpus
            if gpus not in (-1, 0, [0]) or task.config.infrastructure.num_nodes > 1:
                raise ConfigError(
                    f"infrastructure.gpus: {gpus}: when several points run at once, each has one device, which it sees "
                    "as 0; write 0, or run the points one after another with --jobs 1"
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
            except (EOFError, OSError):  # OSError: it died before it had read its task
                worker.end()
                self._workers.remove(worker)
                if self._stopping:
                    continue
                ended.append(Ended(task, Failure("died", f"its process died ({worker.fate})")))
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
    """Worker process with its current task."""

    def __init__(self, number: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process can use neither CUDA nor OpenMP threads
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
        with contextlib.suppress(ConnectionError):  # the worker has died, which `wait` will notice
            self.connection.send(task)

    def stop(self) -> None:
        """Ask the worker to save and end; a second call makes it end without saving."""
        if self._process.is_alive() and self.task is not None:
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """End the worker: at once if it has no task, or else after its checkpoint; kill it if it takes too long."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(None)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    @property
    def fate(self) -> str:
        """Signal or exit code with which the process ended, as text."""
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
        return f"exit code {code}"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shared_out(number: int, threads: int) -> dict[str, str]:
    """Environment variables of worker `number`: its threads and, if there are GPUs, its GPU."""
    environment = {"OMP_NUM_THREADS": str(threads)}
    if torch.cuda.device_count() > 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(each) for each in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return environment


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Context with changed environment variables, which a process started inside inherits."""
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
    """Run tasks from the connection until it sends None."""
    if hasattr(os, "setsid"):  # so that Ctrl-C reaches only the main process, which then stops this one
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
    """Start a thread that makes this process save and end when the parent process has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
