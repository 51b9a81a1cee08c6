"""Sheet of adversarial examples, as pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from biotorch.report.style import new_figure, write

#: Largest number of examples on a sheet, and of examples side by side.
_EXAMPLES, _COLUMNS = 8, 2


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
    """Sheet of eight examples, two in a row: image, perturbation magnified around grey, adversarial image.

    Images that are right before the attack and wrong after it come first, then the others in their order. The title
    says how many there are.

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
    right_before = before == labels
    fooled = right_before & (after != labels)
    order = torch.argsort(~fooled, stable=True)[:_EXAMPLES].cpu()
    images, adversarial, labels, before, after = (
        each.detach().cpu()[order] for each in (images, adversarial, labels, before, after)
    )
    images, adversarial = images.float(), adversarial.float()
    perturbation = adversarial - images
    largest = float(perturbation.abs().max())
    factor = 0.5 / largest if largest > 0 else 1.0
    magnified = (0.5 + factor * perturbation).clamp(0, 1)
    columns = min(_COLUMNS, len(images))
    rows, (height, width) = -(-len(images) // columns), images.shape[2:]
    figure = new_figure(0.2 + 4.8 * columns, 1.0 + rows * (0.35 + 1.5 * height / width))
    ratios = [1.0, 1.0, 1.0, *[0.12, 1.0, 1.0, 1.0] * (columns - 1)]
    grid = figure.subplots(rows, len(ratios), squeeze=False, width_ratios=ratios)
    magnified_by = f"perturbation \N{MULTIPLICATION SIGN} {factor:.3g}" if largest > 0 else "no perturbation"
    for index in range(len(images)):
        row, column = divmod(index, columns)
        places, right = grid[row, 4 * column : 4 * column + 3], int(labels[index])
        _picture(places[0], images[index], _prediction(int(before[index]), right, names))
        _picture(places[1], magnified[index], f"label: {_named(right, names)}")
        _picture(places[2], adversarial[index], _prediction(int(after[index]), right, names))
        for axes, head in zip(places, ("image", magnified_by, "adversarial image"), strict=True):
            axes.set_title(head if row == 0 else "", fontsize="small")
    for axes in figure.axes:
        if not axes.images:  # a gap, or a place that is left over
            axes.remove()
    found = f"{int(fooled.sum())} of {int(right_before.sum())} images that were right are wrong under the attack"
    figure.suptitle("\n".join([textwrap.fill(title, 80), found]).strip(), fontsize="medium")
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
