"""Style of the still figures: readable in greyscale and for the colour-blind, one colour per method everywhere."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from biotorch import _files
from biotorch.rules.registry import position

#: Words in the metadata of every figure, by which it is known as ours.
_MARK = "biotorch figure"

#: Dots per inch of raster images.
DPI = 300

#: Colour and marker of each method: the colours of Okabe and Ito, and darker ones of the same hues. Markers help
#: because there are more methods than colours that everybody can distinguish.
STYLE: dict[str, tuple[str, str]] = {
    "backpropagation": ("#000000", "o"),
    "fa": ("#D55E00", "s"),
    "dfa": ("#0072B2", "^"),
    "usf": ("#009E73", "D"),
    "brsf": ("#CC79A7", "v"),
    "frsf": ("#E69F00", "P"),
    "kp": ("#56B4E9", "h"),
    "wm": ("#882255", "<"),
    "ia": ("#6B4E00", "d"),
    "sa": ("#117733", ">"),
    "dkp": ("#332288", "p"),
    "sdfa": ("#44AA99", "8"),
    "drtp": ("#B59A00", "H"),
    "shallow": ("#999999", "X"),
    "sham": ("#666666", "+"),
}
_OTHER = ("#AA4499", "*")

#: Line styles that distinguish curves of one colour in a panel.
LINES = ("-", "--", "-.", ":")


def style(name: str) -> tuple[str, str]:
    """Colour and marker of a method."""
    return STYLE.get(name, _OTHER)


def on_dark(color: str) -> str:
    """Colour of a method on a dark page: mixed with white if it is too dark to see, white in the place of black."""
    if color == "#000000":
        return "#ffffff"
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    light = sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), parts, strict=True)) / 255
    mixed = max(0.0, 0.62 - light) if light < 0.45 else 0.0
    return "#" + "".join(f"{round(part + (255 - part) * mixed):02x}" for part in parts)


def frame(axes: Axes) -> None:
    """Add a light grid, and remove the top and right edges."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """Empty figure; `width` and `height` are in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def caption(figure: Figure, text: str) -> None:
    """Add wrapped text below the panels."""
    figure.supxlabel(textwrap.fill(text, max(40, int(12 * figure.get_figwidth()))), fontsize="small")


def legend(figure: Figure, grid: Iterable[Axes], more: Sequence[Line2D] = ()) -> None:
    """Add a legend to the right of the panels: every curve once, in the order of the rules, then `more`."""
    lines = {str(line.get_label()): line for axes in grid for line in axes.get_lines()}
    rules = {name: position(name.split(" ")[0]) for name in lines if not name.startswith("_")}
    handles = [lines[name] for name in sorted(rules, key=rules.__getitem__)] + list(more)
    names = [str(each.get_label()) for each in handles]
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize="small")


#: Largest number of names at the ends of the lines of a panel, and the height of one as a part of the panel's.
_LABELS, _LABEL = 18, 0.052


def label_lines(axes: Axes) -> None:
    """Write the name of every line at its right end, in its colour; of many lines, the names of some.

    Names that would overlap are moved apart. Lines whose name starts with an underscore have none. The limits of the
    y axis must be final.
    """
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    step = -(-len(lines) // _LABELS)
    chosen = sorted(lines[::step], key=_end_of)
    bottom, top = axes.get_ylim()
    heights = _apart([(_end_of(line) - bottom) / (top - bottom) for line in chosen])
    for line, height in zip(chosen, heights, strict=True):
        axes.annotate(
            str(line.get_label()),
            (1.015, height),
            xycoords="axes fraction",
            color=line.get_color(),
            fontsize="x-small",
            va="center",
            annotation_clip=False,
        )


def _end_of(line: Line2D) -> float:
    return float(np.asarray(line.get_ydata(), float)[-1])


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising heights, moved apart by at least the height of a name, and back below the top if there is room."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + _LABEL) if moved else max(height, 0.0))
    limit = max(1.0, (len(moved) - 1) * _LABEL)
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], limit)
        limit = moved[number] - _LABEL
    return moved


def logarithmic(axes: Axes, lowest: float, highest: float) -> None:
    """Make the y axis logarithmic from the lowest to the highest value, with marks that are written as numbers."""
    decades = math.log10(highest / lowest)
    room = 10 ** (0.05 * max(decades, 0.1))
    axes.set_yscale("log")
    axes.set_ylim(lowest / room, highest * room)
    steps = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def write(figure: Figure, path: Path) -> Path:
    """Save a figure in the format of its suffix (.png, .svg, .pdf), making its folder, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _take_literally(figure)
    key = "Software" if path.suffix == ".png" else "Creator"
    with _fonts():  # as a whole or not at all, so that half a figure is not taken for somebody else's file
        _files.write(path, lambda file: figure.savefig(file, format=path.suffix[1:], metadata={key: _MARK}))
    return path


def is_own(path: Path) -> bool:
    """Whether a file is a figure that `write` has written."""
    return path.is_file() and _MARK.encode() in path.read_bytes()


def _take_literally(figure: Figure) -> None:
    """Make dollar signs in all text plain text, because names of users are no formulas; ticks have formulas of ours."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    ticks = {label for axis in axes for label in (*axis.get_ticklabels(which="both"), axis.get_offset_text())}
    for text in set(figure.findobj(Text)) - ticks:
        text.set_parse_math(False)


def write_all(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Save a figure as `name` in several formats, and return the paths."""
    return [write(figure, folder / f"{name}.{each}") for each in formats]


@contextmanager
def _fonts() -> Iterator[None]:
    """Context in which text stays text: as text elements in SVG, and in embedded fonts in PDF."""
    with mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        yield
