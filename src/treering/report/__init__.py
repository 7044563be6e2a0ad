"""Plots and self-contained HTML pages."""

from treering.report.figures import (
    arrivals,
    as_png,
    as_png_url,
    as_svg,
    by_depth,
    loss_curves,
    overlaps,
    scatter,
    scores,
)
from treering.report.page import Cell, Drawing, Grid, Report, Section, as_html, render, require_ours, write_page

__all__ = [
    "Cell",
    "Drawing",
    "Grid",
    "Report",
    "Section",
    "arrivals",
    "as_html",
    "as_png",
    "as_png_url",
    "as_svg",
    "by_depth",
    "loss_curves",
    "overlaps",
    "render",
    "require_ours",
    "scatter",
    "scores",
    "write_page",
]
