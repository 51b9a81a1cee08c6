"""Check of data-parallel training in two processes, each a `python -m biotorch.testing.worker`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import rules
from biotorch.kernel import teaching
from biotorch.testing.checks import optimizer_of
from biotorch.testing.network import assert_close, assert_identical, images, loss_of, net

#: Job of the workers: names and options of the rules, and the modules that register them.
Job = dict[str, Any]


def check_processes(rule: str, **options: Any) -> None:
    """Check that 50 updates in two DDP processes give equal weights and feedback, the same as in one process.

    Examples:
        >>> biotorch.testing.check_processes("fa")
    """
    check_processes_of({rule: options})


def check_processes_of(wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Run `check_processes` for several rules (name to options) in a single pair of processes."""
    first, second = _in_two_processes(wanted)
    for rule, options in wanted.items():
        assert_identical(first[rule], second[rule])
        model = net(rule, **options)
        steps(model, model, slice(None), 1.0)
        assert_close(first[rule], model.state_dict(), rtol=1e-3, atol=1e-4)


def _in_two_processes(wanted: Mapping[str, Mapping[str, Any]]) -> list[dict[str, dict[str, Tensor]]]:
    """State after training, by process and rule."""
    modules = {rule: rules.get(rule).__module__ for rule in wanted}
    for rule, module in modules.items():
        assert module != "__main__", (
            f"rule {rule!r} is registered by the script itself; move it into a module of its own"
        )
    homes = [str(Path(str(sys.modules[module].__file__)).parent) for module in modules.values() if "." not in module]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, *homes]), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        job: Job = {"wanted": dict(wanted), "modules": sorted(set(modules.values()))}
        (Path(folder) / "job").write_bytes(pickle.dumps(job))
        commands = [[sys.executable, "-m", "biotorch.testing.worker", folder, str(rank)] for rank in range(2)]
        outputs = [Path(folder) / f"{rank}.log" for rank in range(2)]
        started = []
        for command, path in zip(commands, outputs, strict=True):
            with path.open("w") as output:
                started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started):  # one has failed, and the other would wait for it
                for process in started:
                    process.kill()
            time.sleep(0.02)
        codes = [process.returncode for process in started]
        told = "\n".join(path.read_text() for path in outputs)
        assert codes == [0, 0], f"the processes ended with {codes}:\n{told}"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def steps(model: nn.Module, forward: nn.Module, share: slice, factor: float) -> None:
    """Make 50 updates on the part `share` of each batch, with the loss multiplied by `factor`."""
    optimizer = optimizer_of(model)
    for seed in range(50):
        optimizer.zero_grad()
        # Targets depend on the example, not on its position within a process's batch.
        with teaching.targets((torch.arange(4) % 3)[share], scale=0.01 * factor):
            loss = loss_of(forward(images(4, seed)[share])) * 0.01 * factor
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
