"""The frozen token interface: one row per token, how it was made, and the fingerprint that names it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.errors import TreeringError
from treering.reading import inside, printable, read_json
from treering.recipe import Schema, check_recipe
from treering.substrate import font
from treering.substrate.arithmetic import one_thread, product
from treering.substrate.codes import code_bits, code_rows, random_rows
from treering.substrate.glyphs import cell_size, draw, look_alikes, token_texts
from treering.substrate.projection import hadamard_basis, pca_basis, pixel_basis, project

Kind = Literal["glyph", "code", "random", "trainable"]
Projection = Literal["pca", "hadamard", "pixels"]
Collisions = Literal["mark", "keep"]

MATRIX_FILE = "substrate.safetensors"
RECIPE_FILE = "substrate.json"
MOST_HEADER = 2**20  # bytes of the matrix's file that are not the matrix
MOST_CELL = (
    64  # pixels on a side, unless d_model needs more: pictures, and what PCA takes, grow with the square and more
)
NEAREST = 8192  # vocabularies up to this size have all pairs of rows compared: about a second
VERSION = 1  # of the algorithm: raised when the same recipe would give other bytes


Name = Annotated[str, Field(pattern=r"^[\w .-]{1,200}$")]


@checked_dataclass(frozen=True, config=ConfigDict(strict=True))
class Recipe:
    """Everything that decides a substrate's numbers. What a kind does not use is ``None``.

    Attributes:
        tokenizer: the tokenizer's identity (:func:`treering.tokenizer.identity`).
        vocab: rows, the highest token ID plus one.
        cell: pixels on a side of a glyph cell.
    """

    tokenizer: Name
    vocab: Annotated[int, Field(ge=1, lt=2**31)]
    d_model: Annotated[int, Field(ge=1, le=2**24)]
    kind: Kind = "glyph"
    projection: Projection | None = None
    collisions: Collisions | None = None
    cell: Annotated[int, Field(ge=1)] | None = None
    font: Name | None = None
    bits: Annotated[int, Field(ge=1, le=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    version: int = VERSION

    def to_dict(self) -> dict[str, str | int]:
        """The fields in use, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`.

        Raises:
            TreeringError: a field is missing, unknown or beyond its bounds, or was written by a newer Treering.
        """
        if (version := values.get("version", VERSION)) != VERSION:
            raise TreeringError(
                f"This substrate was made by version {printable(str(version))} of the algorithm, this Treering "
                f"knows version {VERSION}; install the release that made it."
            )
        known = {field.name for field in fields(cls)}
        unknown, missing = (
            sorted(set(values) - known),
            sorted({"tokenizer", "vocab", "d_model", "kind"} - set(values)),
        )
        if unknown or missing:
            what = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
            raise TreeringError(f"The recipe of this substrate cannot be read: {printable('; '.join(what))}.")
        try:
            recipe = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})"
            raise TreeringError(f"The recipe of this substrate cannot be read: {printable(why)}.") from None
        if recipe.cell:
            _require_cell(recipe.cell, recipe.d_model)
        return recipe


@dataclass(frozen=True, eq=False)
class Substrate:
    """A token-embedding matrix that several models share.

    Attributes:
        matrix: ``[vocab, d_model]`` float32; for every kind the rows have length one.
        recipe: all that is needed to make it again from its tokenizer.
        report: what was found on the way (look-alikes, rank, whether the bytes are certain); not part of the
            fingerprint.
        fingerprint: SHA-256 (hex) of recipe and bytes; two models with the same fingerprint speak through the
            same interface.
    """

    matrix: torch.Tensor
    recipe: Recipe
    report: dict[str, Any]
    fingerprint: str

    @property
    def frozen(self) -> bool:
        """Whether training must leave the matrix as it is."""
        return self.recipe.kind != "trainable"

    def save(self, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerFast) -> None:
        """Write matrix, recipe and tokenizer into an existing directory.

        Raises:
            TreeringError: the tokenizer is not the one this substrate was made for.
        """
        require_same(self, tokenizer)
        directory = Path(directory)
        save_file({"matrix": self.matrix}, directory / MATRIX_FILE, metadata={"fingerprint": self.fingerprint})
        document = {
            "fingerprint": self.fingerprint,
            "frozen": self.frozen,
            "recipe": self.recipe.to_dict(),
            "report": self.report,
        }
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (directory / RECIPE_FILE).write_text(text, encoding="utf-8")
        tokenizers.save(tokenizer, directory)


class _Document(Schema):
    """What stands in the file beside the matrix."""

    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    frozen: bool = True
    recipe: dict[str, Any]
    report: dict[Name, bool | int | float | None] = Field({})


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found: no ``differences`` means that the substrate is what its recipe says."""

    fingerprint: str
    rebuilt: str
    differences: list[str]

    @property
    def ok(self) -> bool:
        """Whether rebuilding gave the same bytes."""
        return not self.differences


def build(
    tokenizer: PreTrainedTokenizerFast,
    d_model: int,
    kind: Kind = "glyph",
    *,
    projection: Projection = "pca",
    collisions: Collisions = "mark",
    cell: int | None = None,
    seed: int = 0,
) -> Substrate:
    """Make the substrate of a tokenizer.

    Args:
        kind: ``glyph``, pictures of the tokens (paper, "Visual Unicode glyphs"); ``code``, the binary
            token-ID code; ``random``, frozen random rows; ``trainable``, random rows for a model that trains
            them (the paper's control).
        projection: glyphs to d_model numbers: ``pca`` over the vocabulary as in the paper; ``hadamard``, a
            fixed integer transform; ``pixels``, the centred pixels themselves. The latter two are certain to
            be alike on every machine; PCA is unless ``report["reproducible"]`` says otherwise.
        collisions: tokens that draw alike: ``mark`` gives all but the first a little of the binary code;
            ``keep`` leaves them equal, as the paper does.
        cell: pixels on a side of a cell; by default the paper's for this d_model.
        seed: of ``random`` and ``trainable``.

    Raises:
        TreeringError: a value that is not on offer, or a d_model too small.
    """
    for name, value, choices in (
        ("kind", kind, Kind),
        ("projection", projection, Projection),
        ("collisions", collisions, Collisions),
    ):
        if value not in get_args(choices):
            raise TreeringError(f"Unknown {name} {value!r}; choose one of {', '.join(get_args(choices))}.")
    if d_model < 1:
        raise TreeringError(f"d_model must be at least 1, not {d_model}.")
    texts = token_texts(tokenizer)
    if not texts:
        raise TreeringError("The tokenizer has no tokens; a substrate needs at least one.")
    identity = tokenizers.identity(tokenizer)
    vocab = len(texts)
    if kind == "code":
        recipe = Recipe(identity, vocab, d_model, kind, bits=code_bits(vocab))
        rows = code_rows(vocab, d_model)
        used = (vocab - 1).bit_length()  # bits that vary; the others are equal constants and add one dimension
        report: dict[str, Any] = {"reproducible": True, "rank": used + (code_bits(vocab) > used)}
    elif kind in ("random", "trainable"):
        if not 0 <= seed < 2**64:
            raise TreeringError(f"The seed must be from 0 to 2^64 - 1, not {seed}.")
        recipe = Recipe(identity, vocab, d_model, kind, seed=seed)
        rows, report = random_rows(vocab, d_model, seed), {"reproducible": True}
    else:
        cell = _default_cell(d_model, projection) if cell is None else cell
        _require_cell(cell, d_model)
        recipe = Recipe(identity, vocab, d_model, kind, projection, collisions, cell, font.NAME)
        rows, report = _glyph_rows(texts, recipe)
    report["identical_rows"] = _identical(rows)
    if vocab <= NEAREST:
        report["nearest_rows"] = _nearest(rows)
    return Substrate(torch.from_numpy(rows), recipe, report, _fingerprint(recipe, rows))


def require_substrate(directory: str | os.PathLike[str]) -> None:
    """Refuse what is no substrate's directory, before anything else is read there.

    Raises:
        TreeringError: there is none, or what it was made of cannot be read.
    """
    _read_document(Path(directory))


def load(directory: str | os.PathLike[str]) -> Substrate:
    """Read a saved substrate and check every byte of it against its fingerprint.

    Raises:
        TreeringError: files are missing, cut short, edited or damaged.
    """
    directory = Path(directory)
    document = _read_document(directory)
    path = inside(directory, MATRIX_FILE)
    again = f"Copy it again, or build it again with `treering substrate build {directory} --d-model N -o NEW`."
    if not path.is_file():
        raise TreeringError(f"{path} is missing. {again}")
    recipe = Recipe.from_dict(document.recipe)
    shape = (recipe.vocab, recipe.d_model)
    if (size := path.stat().st_size) > 4 * recipe.vocab * recipe.d_model + MOST_HEADER:
        raise TreeringError(f"{path} should hold a float32 matrix of {shape}, but has {size:,} bytes. {again}")
    try:
        tensors = from_bytes(path.read_bytes())  # not mapped: a mapped file that is cut short kills the process
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise TreeringError(f"{path} is damaged or cut short ({printable(str(error))}). {again}") from None
    matrix = tensors.get("matrix")
    if matrix is None or matrix.dtype != torch.float32 or tuple(matrix.shape) != shape:
        found = "none" if matrix is None else f"{matrix.dtype} {tuple(matrix.shape)}"
        raise TreeringError(f"{path} should hold a float32 matrix of {shape}; found {found}. {again}")
    if not matrix.isfinite().all():
        raise TreeringError(f"{path} holds rows that are no finite numbers; no model can stand on it. {again}")
    found = _fingerprint(recipe, matrix.numpy())
    if found != document.fingerprint:
        raise TreeringError(
            f"{directory} is not the substrate it says it is.\n"
            f"Its recipe and bytes give the fingerprint {found},\n"
            f"but {RECIPE_FILE} says {document.fingerprint}.\n"
            f"One of the files was edited or damaged. {again}"
        )
    return Substrate(matrix, recipe, dict(document.report), found)


def verify(directory: str | os.PathLike[str]) -> Verification:
    """Make a saved substrate again from the tokenizer beside it and its recipe, and compare.

    Raises:
        TreeringError: the stored files cannot be read or do not match their own fingerprint (see
            :func:`load`).
    """
    stored = load(directory)
    tokenizer = tokenizers.load(directory)
    identity = tokenizers.identity(tokenizer)
    if identity != stored.recipe.tokenizer:
        difference = f"the tokenizer beside it is {identity}, but it was made for {stored.recipe.tokenizer}"
        return Verification(stored.fingerprint, "", [difference])
    again = rebuild(tokenizer, stored.recipe)
    return Verification(stored.fingerprint, again.fingerprint, _differences(stored, again))


def rebuild(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Substrate:
    """Make a substrate from its recipe and its tokenizer."""
    options = {name: getattr(recipe, name) for name in ("projection", "collisions", "cell", "seed")}
    chosen = {name: value for name, value in options.items() if value is not None}
    return build(tokenizer, recipe.d_model, recipe.kind, **chosen)


def require_same(substrate: Substrate, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer other than the substrate's own.

    Raises:
        TreeringError: naming both identities.
    """
    identity = tokenizers.identity(tokenizer)
    if identity != substrate.recipe.tokenizer:
        raise TreeringError(
            "The tokenizer and the substrate do not belong together.\n"
            f"The substrate {substrate.fingerprint}\n"
            f"was made for the tokenizer {substrate.recipe.tokenizer},\n"
            f"this one is {identity}.\n"
            "Use the tokenizer in the substrate's directory, or build a substrate for this one."
        )


def _default_cell(d_model: int, projection: Projection) -> int:
    if projection != "pixels":
        return cell_size(d_model)
    side = int(np.sqrt(d_model))
    if side < 8:
        raise TreeringError(f"d_model {d_model} has no room for 8 x 8 pixels; use at least 64, or projection pca.")
    return side


def _require_cell(cell: int, d_model: int) -> None:
    most = max(MOST_CELL, cell_size(d_model))
    if not 1 <= cell <= most:
        raise TreeringError(f"A cell at d_model {d_model} has from 1 to {most} pixels on a side, not {cell}.")


def _glyph_rows(texts: list[str], recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of a glyph substrate and the report of what was met on the way."""
    assert recipe.cell is not None
    bits = code_bits(recipe.vocab)
    if recipe.collisions == "mark" and recipe.d_model < bits:
        raise TreeringError(
            f"d_model {recipe.d_model} has no room for the {bits}-bit mark that tells look-alikes apart; "
            f"use at least {bits}, or collisions=keep."
        )
    cells = draw(texts, recipe.cell)
    groups = look_alikes(cells)
    marked = np.zeros(recipe.vocab, dtype=bool)
    if recipe.collisions == "mark":
        marked[[index for group in groups for index in group[1:]]] = True
    report: dict[str, Any] = {
        "look_alike_groups": len(groups),
        "look_alike_tokens": sum(map(len, groups)),
        "blank_tokens": int((~cells.any(axis=1)).sum()),
        "tokens_with_missing_characters": font.unifont().lacking(texts),
        "marked_tokens": int(marked.sum()),
        "reproducible": True,
    }
    if recipe.projection == "pca":
        weights, basis = pca_basis(cells, recipe.d_model)
        total = basis.values.sum()
        kept = basis.values[: recipe.d_model].sum()
        report |= {
            "rank": min(basis.rank, recipe.d_model),
            "variance_kept": round(float(kept / total), 6) if total else 0.0,
            "reproducible": basis.certain,
            "uncertain_components": basis.unresolved,
            "uncertain_entries": basis.ambiguous,
        }
    elif recipe.projection == "hadamard":
        weights = hadamard_basis(recipe.cell**2, recipe.d_model)
    else:
        weights = pixel_basis(recipe.cell**2, recipe.d_model)
    rows, report["rows_of_code_alone"] = project(cells, weights, marked)
    return rows, report


def _identical(rows: np.ndarray) -> int:
    """How many rows ``[token, d_model]`` are equal to an earlier one."""
    heads = np.ascontiguousarray(rows[:, :8]).view(np.dtype((np.void, 4 * min(8, rows.shape[1])))).ravel()
    _, which, count = np.unique(heads, return_inverse=True, return_counts=True)
    suspects = rows[count[which] > 1]  # only rows that begin alike can be alike
    return len(suspects) - len({hashlib.sha256(row).digest() for row in suspects})


@one_thread()
def _nearest(rows: np.ndarray) -> float | None:
    """Distance between the two rows ``[token, d_model]`` of length one that are nearest, to four decimals."""
    best, pair = -np.inf, None
    for start in range(0, len(rows), 1024):
        cosines = product(rows[start : start + 1024], rows[start:].T)
        np.fill_diagonal(cosines, -np.inf)
        flat = int(cosines.argmax())
        if cosines.flat[flat] > best:
            best, pair = cosines.flat[flat], divmod(flat, cosines.shape[1])
            pair = (pair[0] + start, pair[1] + start)
    if pair is None:
        return None
    first, second = rows[list(pair)].astype(np.float64)
    return round(float(np.linalg.norm(first - second)), 4)


def _fingerprint(recipe: Recipe, rows: np.ndarray) -> str:
    """SHA-256 (hex) of the canonical JSON of the recipe, a line feed, the rows as little-endian float32."""
    canonical = json.dumps(recipe.to_dict(), ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode("ascii") + b"\n")
    digest.update(np.ascontiguousarray(rows, dtype="<f4").data)
    return digest.hexdigest()


def _read_document(directory: Path) -> _Document:
    """What stands beside the matrix."""
    if not directory.is_dir():
        raise TreeringError(
            f"There is no substrate at {printable(str(directory))}; `treering substrate build` makes one."
        )
    path = inside(directory, RECIPE_FILE)
    if not path.is_file():
        raise TreeringError(
            f"{directory} is not a substrate: it has no {RECIPE_FILE}. Make one with `treering substrate build`."
        )
    document = read_json(path)
    if not isinstance(document, dict):
        raise TreeringError(f"{path} lacks a recipe and a fingerprint. Copy it again from where it came from.")
    return check_recipe(document, _Document, f"{path}")


def _differences(stored: Substrate, again: Substrate) -> list[str]:
    """What distinguishes two substrates of one tokenizer, in sentences."""
    if stored.fingerprint == again.fingerprint:
        return []
    ours, theirs = stored.recipe.to_dict(), again.recipe.to_dict()
    changed = [
        f"the recipe's {name} is {ours.get(name)}, rebuilt {theirs.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if stored.matrix.shape != again.matrix.shape:
        return [*changed, f"the matrix is {tuple(stored.matrix.shape)}, rebuilt {tuple(again.matrix.shape)}"]
    distance = (stored.matrix - again.matrix).abs()
    rows = int((distance > 0).any(dim=1).sum())
    if rows:
        changed.append(f"{rows} of {len(distance)} rows differ, by up to {distance.max().item():.3g}")
    if not stored.report.get("reproducible", True):
        changed.append(
            "this PCA was reported as not certain to be alike on every machine; "
            "a substrate with projection hadamard or pixels is"
        )
    return changed
