"""One HTML file that shows everything some runs have to show."""

from biotorch.report.page.page import write_page

__all__ = ["write_page"]
