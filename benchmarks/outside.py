"""Text that is not LibreOffice's: prose out of Debian packages, as JSON lines to measure on and never to train on.

    apt-get download gimp-help-en gimp-help-ru debian-reference-en debian-reference-zh-cn manpages-ru manpages-zh
    python benchmarks/outside.py *.deb -o outside

Leaves ``outside/gimp_ru.jsonl`` and so on: of each package the paragraphs of at most 60 pages, chosen by a hash of
their names. (GIMP's help: GFDL; Debian Reference: GPL-2+; manual pages: several free licences. None is kept here.)
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGES, FEWEST, MOST = 60, 400, 4_000  # a package's, and the characters of one
SOURCES = {
    "gimp-help-en": ("gimp_en", "usr/share/gimp/2.0/help/en/*.html"),
    "gimp-help-ru": ("gimp_ru", "usr/share/gimp/2.0/help/ru/*.html"),
    "debian-reference-en": ("reference_en", "usr/share/debian-reference/*.en.html"),
    "debian-reference-zh-cn": ("reference_zh", "usr/share/debian-reference/*.zh-cn.html"),
    "manpages-ru": ("manual_ru", "usr/share/man/ru/man[1-8]/*.gz"),
    "manpages-zh": ("manual_zh", "usr/share/man/zh_CN/man[1-8]/*.gz"),
}
"""By package, what its text is called, and where its pages are."""


def prose(page: Path) -> str:
    """The paragraphs of a page, a line each."""
    if page.suffix == ".gz":
        lines = gzip.decompress(page.read_bytes()).decode("utf-8", "replace").split("\n")
        kept = [
            re.sub(r"\\f.|\\&|\\\(..|\\[|e]", "", line.replace("\\-", "-"))
            for line in lines
            if line and line[0] not in ".'"
        ]
        found = [line.strip() for line in kept]
    else:
        body = page.read_text("utf-8", "replace")
        found = [html.unescape(re.sub(r"<[^>]*>", "", part)) for part in re.findall(r"(?s)<p\b[^>]*>(.*?)</p>", body)]
        found = [" ".join(part.split()) for part in found]
    return "\n".join(part for part in found if len(part) > 20)[:MOST]


def pages(package: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of a package's pages, in an order that a hash decides."""
    pattern = SOURCES[package.name.partition("_")[0]][1]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
        found = [place for place in Path(scratch).glob(pattern) if not place.is_symlink()]
        for place in sorted(found, key=lambda place: hashlib.sha256(place.name.encode()).hexdigest()):
            text = prose(place)
            if len(text) >= FEWEST:
                yield place.name, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("outside"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for package in options.packages:
        kept = [page for _, page in zip(range(PAGES), pages(package), strict=False)]
        name = SOURCES[package.name.partition("_")[0]][0]
        with (options.output / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for page, text in kept:
                file.write(json.dumps({"id": page, "text": text}, ensure_ascii=False) + "\n")
        print(f"{name}: {len(kept)} pages, {sum(len(text) for _, text in kept):,} characters")


if __name__ == "__main__":
    main()
