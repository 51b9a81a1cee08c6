"""Results that no run has made."""

from __future__ import annotations

import copy

SWEEP = "sweep={model.mode.type: [backpropagation, fa], experiment.seed: [0, 1, 2]}"


def made(result, rule="fa", error=5.0, seed=0, **changes):
    """A result with other figures and settings, as an earlier version wrote it: without checksum."""
    result = {key: value for key, value in copy.deepcopy(result).items() if key != "digest"}
    result["config"]["model"]["mode"]["type"] = rule
    result["config"]["experiment"]["seed"] = seed
    result["test"]["error"] = error
    result["state_hash"] = f"{rule} {seed} {error} {changes}"
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = result["config"]
        for parent in parents:
            section = section[parent]
        section[last] = value
    return result
