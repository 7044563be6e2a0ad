"""What a model can do, in numbers with intervals, and in text."""

from treering.evaluation.attribution import Attribution, explain
from treering.evaluation.bits import (
    Change,
    DocumentLosses,
    Score,
    document_losses,
    paired_change,
    uniform_losses,
)
from treering.evaluation.generation import generate, prompt_ids
from treering.evaluation.table import Row, as_table, bits_per_byte, held_out_texts, rows, uniform_bits_per_byte

__all__ = [
    "Attribution",
    "Change",
    "DocumentLosses",
    "Row",
    "Score",
    "as_table",
    "bits_per_byte",
    "document_losses",
    "explain",
    "generate",
    "held_out_texts",
    "paired_change",
    "prompt_ids",
    "rows",
    "uniform_bits_per_byte",
    "uniform_losses",
]
