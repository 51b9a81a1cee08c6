"""Sheet of adversarial examples, as pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from biotorch.report.style import DPI, write

_ROWS_OF_EXAMPLES = 8


def example_sheet(
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    before: Tensor,
    after: Tensor,
    names: Sequence[str] | None,
    path: Path,
    title: str,
) -> Path:
    """Write the sheet of `draw_examples` and return its path.

    Examples:
        >>> images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
        >>> noisy = (images + 0.1 * torch.randn(images.shape)).clamp(0, 1)
        >>> file, wrong = Path("sheet.png"), labels.flip(0)
        >>> biotorch.report.example_sheet(images, noisy, labels, labels, wrong, None, file, "Noise").is_file()
        True
    """
    return write(draw_examples(images, adversarial, labels, before, after, names, title), path)


def draw_examples(
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    before: Tensor,
    after: Tensor,
    names: Sequence[str] | None,
    title: str,
) -> Figure:
    """Sheet of the first eight examples, one per row: image, perturbation magnified around grey, adversarial image.

    Args:
        images, adversarial: (n, C, H, W) in [0, 1], where C is 1 or 3.
        labels: (n,) int64.
        before, after: (n,) int64, predictions for the images and for the adversarial images.
        names: names of the classes, or None to show their numbers.
        title: title of the sheet.

    Raises:
        ValueError: a tensor has another shape, type or range.
    """
    _check(images, adversarial, labels=labels, before=before, after=after)
    images, adversarial = (each[:_ROWS_OF_EXAMPLES].detach().cpu().float() for each in (images, adversarial))
    perturbation = adversarial - images
    largest = float(perturbation.abs().max())
    factor = 0.5 / largest if largest > 0 else 1.0
    magnified = (0.5 + factor * perturbation).clamp(0, 1)
    rows, (height, width) = len(images), images.shape[2:]
    figure = Figure(figsize=(6, 0.9 + rows * (0.35 + 1.5 * height / width)), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    for index, row in enumerate(grid):
        right = int(labels[index])
        _picture(row[0], images[index], _prediction(int(before[index]), right, names))
        _picture(row[1], magnified[index], f"label: {_named(right, names)}")
        _picture(row[2], adversarial[index], _prediction(int(after[index]), right, names))
    magnified_by = f"perturbation \N{MULTIPLICATION SIGN} {factor:.3g}" if largest > 0 else "no perturbation"
    for axes, head in zip(grid[0], ("image", magnified_by, "adversarial image"), strict=True):
        axes.set_title(head, fontsize="small")
    figure.suptitle(textwrap.fill(title, 64))
    return figure


def _check(images: Tensor, adversarial: Tensor, **classes: Tensor) -> None:
    if images.dim() != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images: (n, C, H, W) with n > 0 and C 1 or 3 is needed, not {tuple(images.shape)}")
    if adversarial.shape != images.shape:
        raise ValueError(f"adversarial: {tuple(images.shape)} is needed, like images, not {tuple(adversarial.shape)}")
    for name, each in {"images": images, "adversarial": adversarial}.items():
        if not bool(((each >= 0) & (each <= 1)).all()):  # also raises if a value is NaN
            raise ValueError(f"{name}: values from 0 to 1 are needed, not {float(each.min())} to {float(each.max())}")
    for name, each in classes.items():
        if each.shape != images.shape[:1] or each.dtype != torch.int64:
            raise ValueError(f"{name}: ({len(images)},) int64 is needed, not {tuple(each.shape)} {each.dtype}")


def _picture(axes: Axes, image: Tensor, below: str) -> None:
    """Show an image (C, H, W) in [0, 1] with text below it; no interpolation, so that pixels stay squares."""
    axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(below, fontsize="small")


def _prediction(predicted: int, right: int, names: Sequence[str] | None) -> str:
    return f"{_named(predicted, names)}: {'right' if predicted == right else 'wrong'}"


def _named(number: int, names: Sequence[str] | None) -> str:
    return str(number) if names is None else textwrap.shorten(names[number], 22, placeholder="…")
