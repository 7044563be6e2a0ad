"""Whole jobs on the embedded text, from nothing to a report: what Treering is for, shown."""

from treering.demo.pretrained import demo_pretrained
from treering.demo.specialists import demo
from treering.demo.steps import DemoResult

__all__ = ["DemoResult", "demo", "demo_pretrained"]
