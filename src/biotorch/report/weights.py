"""Pictures of weights: B against W, filters, and the similarity of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from biotorch.metrics import angle
from biotorch.report.style import frame, new_figure

#: Largest number of points in a panel of a scatter figure; of more entries, evenly spaced ones are drawn.
_POINTS = 4000
#: Largest number of panels in a row.
_COLUMNS = 4
#: Largest number of layers whose similarities are written into the map.
_WRITTEN = 10


def draw_scatter(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Entries of B over the same entries of W, one panel per layer.

    The title of a panel has the alignment angle of all entries. The line is the least-squares line through the origin,
    whose slope is cos(angle) |B| / |W|: it is level at 90 degrees.

    Args:
        pairs: W and B of every layer by its name, in one shape.
    """
    columns = min(_COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = new_figure(0.4 + 2.4 * columns, 0.5 + 2.5 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(pairs) :]:
        axes.set_visible(False)
    for axes, (name, (weight, feedback)) in zip(grid, pairs.items(), strict=False):
        _scatter(axes, weight.detach().flatten().double().cpu(), feedback.detach().flatten().double().cpu())
        axes.set_title(f"{name}\n{angle(weight, feedback):.1f}°".strip(), fontsize="medium")
    figure.supxlabel("entry of W", fontsize="medium")
    figure.supylabel("same entry of B", fontsize="medium")
    return figure


def _scatter(axes: Axes, weight: Tensor, feedback: Tensor) -> None:
    chosen = torch.linspace(0, len(weight) - 1, min(_POINTS, len(weight))).long()
    axes.plot(
        weight[chosen].numpy(),
        feedback[chosen].numpy(),
        linestyle="",
        marker=".",
        markersize=3,
        markeredgewidth=0,
        alpha=0.35,
        color="#0072B2",
        rasterized=True,
    )
    ends = torch.stack([weight.min(), weight.max()])
    slope = (weight @ feedback) / (weight @ weight)
    axes.plot(ends.numpy(), (slope * ends).numpy(), color="#D55E00", linewidth=1.4)
    frame(axes)


def draw_filters(rows: Mapping[str, Tensor], name: str, units: int = 10, shape: Sequence[int] | None = None) -> Figure:
    """Filters of a layer as pictures: one row for each entry of `rows`, one column per unit.

    White is zero, red is positive and blue is negative, and each row has its own scale. Filters of three channels are
    in colour, and grey is zero. Of any other number of channels, the first is shown.

    Args:
        rows: tensors (units, ...) by the label of their row.
        name: name of the layer, for messages and the title.
        units: largest number of columns.
        shape: (C, H, W) or (H, W) of one filter; default: its own shape, or a square for filters of one dimension.

    Raises:
        ValueError: the filters do not have this shape, or are no pictures.
    """
    pictures = {label: _pictures(each.detach().cpu().float(), name, shape)[:units] for label, each in rows.items()}
    height, width = next(iter(pictures.values())).shape[-2:]
    columns = max(map(len, pictures.values()))
    size = min(1.0, 9.0 / columns)
    figure = new_figure(1.1 + size * columns, 0.5 + len(rows) * (0.08 + size * height / width))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (label, each) in zip(grid, pictures.items(), strict=True):
        for axes, picture in zip(row, each, strict=False):
            _picture(axes, picture, float(each.abs().max()) or 1.0)
        for axes in row[len(each) :]:
            axes.set_visible(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(f"{name or 'the layer'}: {columns} of {len(next(iter(rows.values())))} units", fontsize="medium")
    return figure


def _pictures(filters: Tensor, name: str, shape: Sequence[int] | None) -> Tensor:
    """Filters as (units, C, H, W)."""
    size = filters[0].numel()
    if shape is None:
        side = math.isqrt(size)
        shape = (side, side) if filters.dim() == 2 and side * side == size else tuple(filters.shape[1:])
    if len(shape) not in (2, 3) or math.prod(shape) != size:
        raise ValueError(
            f"shape: the filters of {name!r} have {size} values in the shape {tuple(filters.shape[1:])}; give a shape "
            f"(C, H, W) or (H, W) with as many values, not {tuple(shape)}"
        )
    return filters.reshape(len(filters), *(shape if len(shape) == 3 else (1, *shape)))


def _picture(axes: Axes, picture: Tensor, largest: float) -> None:
    """Show one filter (C, H, W), without interpolation so that weights stay squares."""
    if len(picture) == 3:
        axes.imshow((0.5 + 0.5 * picture / largest).permute(1, 2, 0).numpy(), interpolation="nearest")
    else:
        axes.imshow(picture[0].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def draw_similarity(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], names: tuple[str, str]
) -> Figure:
    """Map of similarities from 0 to 1 between the layers of two networks.

    Args:
        values: one list for each layer of the first network, with a number for each layer of the second.
        rows, columns: names of the layers of the first and of the second network.
        names: names of the two networks.
    """
    figure = new_figure(2.2 + 0.55 * len(columns), 1.6 + 0.5 * len(rows))
    axes = figure.subplots()
    shown = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    axes.set_xticks(range(len(columns)), labels=columns, rotation=90)
    axes.set_yticks(range(len(rows)), labels=rows)
    axes.set_xlabel(names[1])
    axes.set_ylabel(names[0])
    if max(len(rows), len(columns)) <= _WRITTEN:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize="small")
    figure.colorbar(shown, ax=axes, label="linear CKA")
    return figure
