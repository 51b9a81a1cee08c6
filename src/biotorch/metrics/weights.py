"""Alignment angle and norm ratio between forward and feedback weights (paper, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biotorch.layers import connections


def angle(a: Tensor, b: Tensor) -> float:
    """The angle in degrees, 0 to 180, between two tensors of one shape, flattened.

    By Kahan's formula, which keeps small angles exact where acos(cosine) loses half the digits.
    nan where one of them is zero.
    """
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    norm_a, norm_b = a.norm(), b.norm()
    if norm_a == 0 or norm_b == 0:
        return math.nan
    a, b = a / norm_a, b / norm_b
    return math.degrees(2 * torch.atan2((a - b).norm(), (a + b).norm()).item())


def alignment_angles(model: nn.Module) -> dict[str, float]:
    """Degrees between W and the effective B (signs included) of every feedback layer, by dotted name.

    A layer with several weight matrices has one entry for each, its name with that of the parameter. 0 is
    backpropagation. A direct rule's B has another shape than W: its layers have no angle and are left out;
    `gradient_alignment` takes its place.
    """
    return {
        name: angle(connection.weight, effective)
        for name, connection in connections(model).items()
        if (effective := connection.effective_feedback) is not None
    }


def norm_ratios(model: nn.Module) -> dict[str, float]:
    """|B| / |W| of every feedback layer, direct ones included, by dotted name."""
    ratios = {}
    for name, connection in connections(model).items():
        effective = connection.effective_feedback
        feedback = connection.feedback if effective is None else effective
        if feedback is not None:
            ratios[name] = (feedback.detach().double().norm() / connection.weight.detach().double().norm()).item()
    return ratios
