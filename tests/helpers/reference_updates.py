"""How the learned feedbacks learn, slowly: number by number, from the papers' equations, in float64.

W and B are (out, in) here; x is a pattern at the layer's input, y = W x, e the output's error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def descent(weight: Tensor, gradients: Sequence[Tensor], rate: float, decay: float) -> Tensor:
    """A matrix after gradient descent with decay; Kolen-Pollack is to do this to W and to B with one list of gradients.

    Akrout et al. 2019, equations (16), (17): Delta = -eta delta y^T - lambda M for both.
    """
    matrix = weight.clone()
    for gradient in gradients:
        for i in range(matrix.shape[0]):
            for j in range(matrix.shape[1]):
                matrix[i, j] = matrix[i, j] - rate * gradient[i, j] - rate * decay * matrix[i, j]
    return matrix


def weight_mirror(feedback: Tensor, weight: Tensor, noise: Tensor, rate: float, decay: float, limit: float) -> Tensor:
    """Akrout et al. 2019, equation (7): Delta B = eta_B delta_l delta_{l+1}^T, with decay; then growth control."""
    new = (1 - decay) * feedback
    for x in noise:
        for i in range(weight.shape[0]):
            y = sum(weight[i, k] * x[k] for k in range(len(x)))
            for j in range(weight.shape[1]):
                new[i, j] += rate * y * x[j] / len(noise)
    # The variance of what B makes of white noise at the outputs, averaged over the inputs.
    variance = sum(new[i, j] ** 2 for i in range(new.shape[0]) for j in range(new.shape[1])) / new.shape[1]
    return new * (limit / variance.sqrt()) if variance.sqrt() > limit else new


def information_alignment(
    feedback: Tensor, weight: Tensor, noise: Tensor, rate: float, alpha: float, beta: float, gamma: float
) -> Tensor:
    """Kunin et al. 2020: a step down -alpha tr(x^T B^T y) + beta/2 |B|^2 + gamma/2 |B^T y|^2, by differences.

    Its gradient is taken numerically: R is quadratic in B, for which central differences are exact.
    """

    def regularizer(b: Tensor) -> Tensor:
        total = beta / 2 * (b**2).sum()
        for x in noise:
            y = weight @ x
            back = b.T @ y
            total = total + (-alpha * (x @ back) + gamma / 2 * (back @ back)) / len(noise)
        return total

    new, h = feedback.clone(), 1e-3
    for i in range(feedback.shape[0]):
        for j in range(feedback.shape[1]):
            unit = torch.zeros_like(feedback)
            unit[i, j] = h
            new[i, j] -= rate * (regularizer(feedback + unit) - regularizer(feedback - unit)) / (2 * h)
    return new


def symmetric_alignment(feedback: Tensor, weight: Tensor, rate: float) -> Tensor:
    """Kunin et al. 2020: a step down 1/2 |W - B|^2."""
    new = feedback.clone()
    for i in range(feedback.shape[0]):
        for j in range(feedback.shape[1]):
            new[i, j] = feedback[i, j] - rate * (feedback[i, j] - weight[i, j])
    return new


def direct_kolen_pollack(feedback: Tensor, errors: Tensor, inputs: Tensor, rate: float, decay: float) -> Tensor:
    """Webster et al. 2021: Delta B = -eta e y^T - lambda B for a B (n_out, in), summed over the batch."""
    new = feedback - decay * feedback
    for e, x in zip(errors, inputs, strict=True):
        for i in range(feedback.shape[0]):
            for j in range(feedback.shape[1]):
                new[i, j] -= rate * e[i] * x[j]
    return new


def copying(weight: Tensor) -> Tensor:
    """B = W: the sham control."""
    return weight.clone()


def redrawing(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """brSF: magnitudes of a uniform distribution up to Xavier's bound, in 65,536 steps, four from each draw."""
    count, bound = math.prod(shape), math.sqrt(6 / (shape[0] + shape[1]))
    draws = torch.empty(math.ceil(count / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    parts = [(draw >> shift) % 65536 for draw in draws.tolist() for shift in (0, 16, 32, 48)]  # the lowest bits first
    steps = torch.tensor([(part + 32768) % 65536 for part in parts[:count]], dtype=torch.float64)
    return (steps + 0.5).view(shape) / 65536 * bound
