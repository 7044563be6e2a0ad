"""Plots and self-contained HTML pages."""

from treering.report.figures import arrivals, as_png, as_png_url, as_svg, heat_map, loss_curves, overlaps, scores
from treering.report.page import render

__all__ = ["arrivals", "as_png", "as_png_url", "as_svg", "heat_map", "loss_curves", "overlaps", "render", "scores"]
