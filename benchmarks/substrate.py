"""Glyph substrates: Treering against a small faithful version of the author's reference pipeline.

    python benchmarks/substrate.py                      # 65,536 tokens x 1,024, some minutes
    python benchmarks/substrate.py --vocab 8192 --d-model 256 --cell 16

The reference does what the author's published notebook does, stage by stage: each token drawn with Unifont
through Pillow at 32 pixels, character beside character in square boxes; slightly rotated, shifted, speckled
and blurred (alphabetic scripts); resized to the cell with Pillow's bilinear filter, thresholded; the pixels
listed one by one in polar order around the centre, the order worked out anew for every token; written to a
text file as "[0, 1, ...]", one token a line; the file parsed back; scikit-learn's PCA in float32 with the
full singular value decomposition (its own choice at 1,024 of 1,024); rows normalised and saved. With --plain
it draws as Treering does (the characters' own widths, no distortion), so that the results can be compared.
The glyphs come from the same bitmaps, not through FreeType.

Both pipelines run in a process of their own, on the same texts, and are timed without imports. Needs the
extra ``benchmarks`` (Pillow and scikit-learn).
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from treering.substrate import build
from treering.substrate.font import unifont
from treering.substrate.glyphs import cell_size, token_texts

Stages = dict[str, tuple[float, float]]  # seconds by the wall clock and of processor time


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def vocabulary(size: int) -> PreTrainedTokenizerFast:
    """The paper's layout: code points at their own IDs, 2- and 3-grams of the help pages in surrogate and
    private ranges.
    """
    free = [*range(0xD800, 0xE000), *range(0xE100, 0xF900)]
    grams: Counter[str] = Counter()
    for language in ("ru", "zh", "en"):
        packed = (
            resources.files("treering.corpus.embedded").joinpath(f"libreoffice-help.{language}.jsonl.xz").read_bytes()
        )
        for line in lzma.decompress(packed).decode().splitlines()[:400]:
            for paragraph in json.loads(line)["paragraphs"]:
                text = paragraph["text"]
                grams.update(text[i : i + n] for n in (2, 3) for i in range(len(text) - n + 1))
    named = dict(zip(free, (gram for gram, _ in grams.most_common(len(free))), strict=True))
    named |= {index: f"<unused_{index}>" for index in (*range(0xE000, 0xE100), 0xFFFF)}
    tokens = [named.get(index, chr(index)) for index in range(0x10000)]
    if size < len(tokens):  # every k-th token keeps the mix of scripts
        tokens = tokens[:: len(tokens) // size][:size]
    model = models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))


def polar_bits(image: Any) -> list[int]:
    """A grey Pillow image's pixels as bits, from the centre outwards and round."""
    pixels = image.load()
    width, height = image.size
    order = []
    for y in range(height):
        for x in range(width):
            across, down = x - width / 2, y - height / 2
            order.append((math.hypot(across, down), math.atan2(down, across), x, y))
    order.sort()
    return [1 if pixels[x, y] >= 128 else 0 for _, _, x, y in order]


def picture(text: str, plain: bool) -> Any:
    """A token's text in black and white, before it is resized."""
    from PIL import Image, ImageFilter

    font = unifont()
    glyphs = []
    for character in text:
        columns = font.columns[font.layout(character)]  # [column, 16]
        glyphs.append(Image.frombytes("1", (8 * len(columns), 16), columns.T.tobytes()).convert("L"))
    if plain:
        canvas = Image.new("L", (max(8, sum(glyph.width for glyph in glyphs)), 16), 0)
        left = 0
        for glyph in glyphs:
            canvas.paste(glyph, (left, 0))
            left += glyph.width
        return canvas
    canvas = Image.new("L", (32 * max(1, len(text)), 32), 0)
    for place, glyph in enumerate(glyphs):
        large = glyph.resize((2 * glyph.width, 32), Image.Resampling.NEAREST)
        canvas.paste(large, (32 * place + (32 - large.width) // 2, 0))
    alphabetic = all(character < "\u0590" for character in text)
    random = np.random.default_rng(42)
    canvas = canvas.rotate(random.uniform(-4, 4) if alphabetic else 0)
    shifted = Image.new("L", canvas.size, 0)
    shifted.paste(canvas, tuple(random.integers(-2, 3, 2).tolist()) if alphabetic else (0, 0))
    speckled = np.array(shifted)
    speckled[random.random(speckled.shape) < (0.01 if alphabetic else 0.001)] = 255
    canvas = Image.fromarray(speckled)
    if alphabetic:
        canvas = canvas.filter(ImageFilter.GaussianBlur(0.5))
    return canvas.point(lambda value: 255 if value >= 128 else 0)


def reference(texts: list[str], d_model: int, cell: int, plain: bool, directory: Path) -> Stages:
    """The author's pipeline."""
    from PIL import Image
    from sklearn.decomposition import PCA

    unifont()
    stages: Stages = {}
    start = now()
    lines = directory / "bits.txt"
    with lines.open("w") as file:
        for text in texts:
            resized = picture(text, plain).resize((cell, cell), Image.Resampling.BILINEAR)
            file.write(f"{polar_bits(resized)}\n")
    stages["draw and write bits"] = since(start)

    start = now()
    with lines.open() as file:
        rows_of_bits = [np.fromstring(line.strip()[1:-1], dtype=int, sep=",") for line in file]
    cells = np.array(rows_of_bits, dtype=np.uint8).astype(np.float32)
    del rows_of_bits
    stages["read bits"] = since(start)

    start = now()
    rows = PCA(n_components=d_model, svd_solver="full").fit_transform(cells)
    stages["PCA"] = since(start)

    start = now()
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    np.save(directory / "reference.npy", rows.astype(np.float32))
    stages["normalise and save"] = since(start)
    return stages


def ours(texts: list[str], d_model: int, cell: int, plain: bool, directory: Path) -> Stages:
    """Treering's public function, from the tokenizer to the fingerprint, and the files."""
    tokenizer = vocabulary(len(texts))
    start = now()
    made = build(tokenizer, d_model, cell=cell, collisions="keep")
    stages: Stages = {"build, with fingerprint": since(start)}
    start = now()
    made.save(directory, tokenizer)
    stages["save"] = since(start)
    np.save(directory / "ours.npy", made.matrix.numpy())
    return stages


def measured(pipeline: Callable[..., Stages], *arguments: object) -> tuple[Stages, float]:
    """Stage times in seconds and the process's peak memory in MiB."""
    return pipeline(*arguments), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=65_536)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--cell", type=int, default=None)
    parser.add_argument("--plain", action="store_true", help="the reference draws without distortion")
    parser.add_argument("--only", choices=("ours", "reference"))
    arguments = parser.parse_args()
    cell = arguments.cell or cell_size(arguments.d_model)
    texts = token_texts(vocabulary(arguments.vocab))
    console = Console()
    table = Table("pipeline", "stage", "seconds", "CPU seconds", "peak MiB")
    totals: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for label, pipeline in (("reference", reference), ("ours", ours)):
            if arguments.only not in (None, label):
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                stages, memory = pool.apply(
                    measured, (pipeline, texts, arguments.d_model, cell, arguments.plain, directory)
                )
            for stage, (wall, processor) in stages.items():
                table.add_row(label, stage, f"{wall:.2f}", f"{processor:.2f}", "")
            wall, processor = totals[label] = np.sum(list(stages.values()), axis=0)
            table.add_row(label, "all", f"{wall:.2f}", f"{processor:.2f}", f"{memory:,.0f}", end_section=True)
        console.print(f"{len(texts):,} tokens, {cell} x {cell} cells, d_model {arguments.d_model:,}")
        console.print(table)
        if len(totals) == 2:
            wall, processor = totals["reference"] / totals["ours"]
            console.print(f"ratio {wall:.1f}x by the clock, {processor:.1f}x in processor time")
        if len(totals) == 2 and arguments.plain:
            theirs, mine = np.load(directory / "reference.npy"), np.load(directory / "ours.npy")
            pairs = np.random.default_rng(0).integers(0, len(texts), (2, 100_000))
            angles = [np.einsum("rc,rc->r", rows[pairs[0]], rows[pairs[1]]) for rows in (theirs, mine)]
            difference = np.abs(angles[0] - angles[1])
            console.print(
                f"cosines of 100,000 random pairs of rows differ by {difference.mean():.1e} on average, "
                f"{difference.max():.1e} at most"
            )


if __name__ == "__main__":
    main()
