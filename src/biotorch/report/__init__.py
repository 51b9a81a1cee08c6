"""Tables and figures made from results."""

from biotorch.report.angles import angle_figure
from biotorch.report.examples import example_sheet
from biotorch.report.figures import draw_all
from biotorch.report.robustness import black_box_figure, white_box_figure
from biotorch.report.smallest import smallest_figure
from biotorch.report.table import table

__all__ = [
    "angle_figure",
    "black_box_figure",
    "draw_all",
    "example_sheet",
    "smallest_figure",
    "table",
    "white_box_figure",
]
