"""Frozen rows that hold no picture: the binary token-ID code of the paper, and random rows as a control."""

from __future__ import annotations

import numpy as np

from treering.errors import TreeringError


def code_bits(vocab: int) -> int:
    """Bits of a token-ID code: the paper's 16 for up to 65,536 tokens, ⌈log2 vocab⌉ beyond."""
    return max(16, (vocab - 1).bit_length())


def token_codes(vocab: int) -> np.ndarray:
    """The compact code ``[vocab, bits]`` int8: column k is bit k of the ID (lowest first), 1 as +1 and 0 as
    −1.

    This is all the information in a code substrate: 65,536 × 16 = 1,048,576 frozen numbers, whatever d_model
    is.
    """
    ids, bits = np.arange(vocab)[:, None], np.arange(code_bits(vocab))[None, :]
    return (2 * ((ids >> bits) & 1) - 1).astype(np.int8)


def lift(codes: np.ndarray, d_model: int) -> np.ndarray:
    """Repeat a code ``[token, bits]`` along the row: column c of ``[token, d_model]`` is bit c mod bits.

    The bits follow each other and the whole code repeats; when d_model is not a multiple of the bits, the
    last repetition is cut.

    Raises:
        TreeringError: d_model has no room for one whole code.
    """
    bits = codes.shape[1]
    if d_model < bits:
        raise TreeringError(f"d_model {d_model} is too small for a {bits}-bit token code; use at least {bits}.")
    return np.ascontiguousarray(codes[:, np.arange(d_model) % bits])


def code_rows(vocab: int, d_model: int) -> np.ndarray:
    """The code as rows of length one, ``[vocab, d_model]`` float32 of ±1/√d_model."""
    return lift(token_codes(vocab), d_model) * np.float32(1 / np.sqrt(np.float64(d_model)))


def random_rows(vocab: int, d_model: int, seed: int) -> np.ndarray:
    """Random rows of length one, ``[vocab, d_model]`` float32, very nearly uniform on the sphere; the same on
    every machine.

    Each number is the sum of the four 16-bit quarters of one raw output of Philox (Salmon et al. 2011), whose
    stream is
    fixed by its definition: a whole number of nearly normal distribution, so that its row's length is exact
    up to one rounding.
    """
    raw = np.random.Philox(key=seed)
    rows = np.empty((vocab, d_model), dtype=np.float32)
    step = max(1, (1 << 22) // d_model)
    for start in range(0, vocab, step):
        count = min(step, vocab - start)
        words = raw.random_raw(count * d_model).reshape(count, d_model)
        quarters = (words >> np.uint64(shift) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
        whole = sum(quarter.astype(np.float64) for quarter in quarters) - 131070.0  # four times the mean of 0 … 65535
        rows[start : start + count] = unit_rows(whole)
    return rows


def row_lengths(whole: np.ndarray) -> np.ndarray:
    """Lengths ``[row]`` of rows of whole numbers ``[row, column]``, both float64.

    The squares must sum below 2^53, so that the sums are exact whatever their order; IEEE 754 rounds the one
    square root the same way everywhere.
    """
    squares = np.einsum("rc,rc->r", whole, whole)
    if squares.max(initial=0) >= 2.0**53:
        raise ValueError("row lengths exceed what float64 sums exactly")
    return np.sqrt(squares)


def unit_rows(whole: np.ndarray) -> np.ndarray:
    """Divide rows of whole numbers ``[row, column]`` (float64) by their lengths, as float32; zeros stay."""
    lengths = row_lengths(whole)
    return (whole / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
