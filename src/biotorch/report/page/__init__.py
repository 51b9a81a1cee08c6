"""Self-contained HTML page of tables, figures and details of runs."""

from biotorch.report.page.page import write_page

__all__ = ["write_page"]
