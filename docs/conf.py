"""The site: `make site` builds it from the Markdown pages of this repository, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "_extensions")]

from treering import __version__  # noqa: E402

project = "Treering"
author = "The Treering developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_line",
    "reachable",
    "recipe_fields",
]

# The pages are those that GitHub shows, where they are, so the source is the repository itself: links between pages, to
# files of src/ (which the site hands out as they are) and to images need no translation. All else is not looked at.
PAGES = {"docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
root_doc = "docs/index"
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in PAGES]

myst_heading_anchors = 4  # GitHub's

autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "Treering"
html_additional_pages = {"index": "start.html"}
templates_path = ["_templates"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
