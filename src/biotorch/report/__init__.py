"""Results to tables and figures."""

from biotorch.report.figures import angle_figure
from biotorch.report.table import table

__all__ = ["angle_figure", "table"]
