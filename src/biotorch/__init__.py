"""biotorch: train any PyTorch network without weight transport, and know honestly how well it does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from biotorch import layers, metrics, models, module, rules
from biotorch.auditing import Audit, AuditError, audit
from biotorch.conversion import ConversionError, ConversionWarning, Summary, convert, revert, summary
from biotorch.kernel.teaching import targets
from biotorch.layers import clip_grad_norm_, feedback_parameters, register_layer, true_gradients, updated
from biotorch.manhattan import batch_manhattan
from biotorch.module import BioModule

__version__ = "0.1.0.dev0"


def load(run: Path | str, which: Literal["best", "latest"] = "best", device: torch.device | str = "cpu") -> nn.Module:
    """The trained network of a run's folder, or of one of its .pth files; see `biotorch.experiment.load`."""
    from biotorch import experiment  # noqa: PLC0415 - what experiments need is loaded when one is asked for

    return experiment.load(run, which, device)


def __getattr__(name: str) -> Any:
    """`biotorch.results`, which takes pandas, and `biotorch.testing`, when they are asked for."""
    if name in ("results", "testing"):
        return importlib.import_module(f"biotorch.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Audit",
    "AuditError",
    "BioModule",
    "ConversionError",
    "ConversionWarning",
    "Summary",
    "audit",
    "batch_manhattan",
    "clip_grad_norm_",
    "convert",
    "feedback_parameters",
    "layers",
    "load",
    "metrics",
    "models",
    "module",
    "register_layer",
    "revert",
    "rules",
    "summary",
    "targets",
    "true_gradients",
    "updated",
]
