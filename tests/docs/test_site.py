"""The documentation site builds without a warning, its links lead somewhere, and it asks nobody else for anything."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from typer.main import get_command

import treering
from treering.cli.main import app

pytest.importorskip("sphinx", reason="the site's generator needs Python 3.11")

ROOT = Path(__file__).parents[2]
ROOMS = ("tokenizer", "substrate", "corpus", "training", "composition", "growth", "evaluation", "report", "publishing")


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that have a name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif name in ("href", "src", "data") and value:
                (self.links if tag == "a" else self.loads).append(value)


page = cache(Page)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What ``make site`` builds."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", site / "read", ".", site]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


def test_every_link_leads_somewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    dead = []
    for path in pages:
        for address in page(path).links + page(path).loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or address.startswith("data:"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and site in target.parents
            place = unquote(parts.fragment)
            if not there or (place and target.suffix == ".html" and place not in page(target).places):
                dead.append(f"{path.relative_to(site)}: {address}")
    assert dead == []


def test_the_site_loads_nothing_from_elsewhere(site):
    loads = {address for path in site.rglob("*.html") for address in page(path).loads}
    assert [address for address in loads if urlsplit(address).netloc] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert styles and "url(http" not in styles and "url(//" not in styles and "@import" not in styles


def test_the_reference_has_every_command(site):
    def names(command, path):
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from names(inner, f"{path}-{name}")

    places = page(site / "docs" / "reference" / "commands.html").places
    assert [name for name in names(get_command(app), "treering") if name not in places] == []


def test_the_reference_has_every_public_name(site):
    places = page(site / "docs" / "reference" / "python.html").places
    functions = [f"treering.{name}" for name in treering._HOMES if name != "PRESETS"]
    assert [name for name in functions if name not in places] == []
    for room in ROOMS:
        module = importlib.import_module(f"treering.{room}")
        described = [name for name in module.__all__ if callable(getattr(module, name))]
        kinds = ("Mix",)  # of type aliases there is nothing to say but what signatures say
        missing = [name for name in described if f"treering.{room}.{name}" not in places and name not in kinds]
        assert missing == [], room


@pytest.mark.parametrize("name", ["index", "idea", "plans"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_hinders_people(site, visit, faults, name, width, scheme):
    assert faults(visit((site / "docs" / f"{name}.html").as_uri(), width, scheme)) == []


WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What is generated is long and all of a kind: of what lies side by side, axe-core looks at the first.
FAR = ":is(section > section, section > dl, dd > dl, .toc-tree li):nth-of-type(n+4)"


@pytest.mark.parametrize("name", ["commands", "python"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hinders_people_in_what_is_generated(site, visit, faults, name, width, scheme):
    shown = visit((site / "docs" / "reference" / f"{name}.html").as_uri(), width, scheme)
    assert shown.evaluate(WIDER) <= 0
    shown.evaluate("far => document.querySelectorAll(far).forEach(one => one.remove())", FAR)
    assert faults(shown) == []


def test_the_front_door_leads_to_the_front_page(site, visit):
    door = visit((site / "index.html").as_uri())
    door.wait_for_url("**/docs/index.html")
    assert "Can I use it on my model?" in door.inner_text("article")
