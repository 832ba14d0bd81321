"""What people look at: the front as a self-contained page, as a static picture and as tables."""

from festina.report.page import write_page
from festina.report.plot import write_plot
from festina.report.points import FrontPage, Point
from festina.report.tables import markdown_table, rich_table

__all__ = ["FrontPage", "Point", "markdown_table", "rich_table", "write_page", "write_plot"]
