"""Measurements of a run that stand beside its attacks: accuracy under corruptions, and calibration."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from biotorch.experiment.display import Display
from biotorch.robustness import Calibration, Corruptions, calibration, corruptions
from biotorch.robustness.config import AttacksConfig


def beside_attacks(
    section: AttacksConfig,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    twin: nn.Module | None,
    folder: Path,
    display: Display | None,
) -> dict[str, Corruptions | Calibration]:
    """Measurements that the section wants beside attacks, by their key in it.

    Args:
        section: section `attacks` of the run's configuration.
        model: network of the run, for images in [0, 1].
        data: images (n, C, H, W) in [0, 1] and labels (n,).
        twin: baseline of the mean corruption error, if there is one.
        folder: folder in which the measurements of corruptions are kept.
        display: receives the progress.
    """
    found: dict[str, Corruptions | Calibration] = {}
    if section.corruptions:
        found["corruptions"] = corruptions(
            model,
            data,
            baseline=twin,
            seed=section.seed,
            batch_size=section.batch_size,
            folder=folder,
            on_kind=(display or Display()).corruption,
        )
    if section.calibration:
        found["calibration"] = calibration(model, data, batch_size=section.batch_size)
    return found
