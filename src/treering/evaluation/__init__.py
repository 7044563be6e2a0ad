"""What a model can do, in numbers with intervals, and in text."""

from treering.evaluation.bits import DocumentLosses, Score, document_losses, uniform_losses
from treering.evaluation.generation import generate
from treering.evaluation.table import Row, as_table, bits_per_byte, uniform_bits_per_byte

__all__ = [
    "DocumentLosses",
    "Row",
    "Score",
    "as_table",
    "bits_per_byte",
    "document_losses",
    "generate",
    "uniform_bits_per_byte",
    "uniform_losses",
]
