"""Results to tables and figures."""

from biotorch.report.figures import angle_figure
from biotorch.report.table import Table, table

__all__ = ["Table", "angle_figure", "table"]
