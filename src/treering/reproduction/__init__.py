"""A reproduction of the seed's papers at small scale: each claim of their abstracts tried, by rules written before."""

from treering.reproduction.claims import Claim, Contrast, Finding, Measured, Verdict, claims, verdict
from treering.reproduction.recipe import ReproductionRecipe
from treering.reproduction.reproduction import Reproduction, reproduce
from treering.reproduction.rows import Expert, expected, experts, rows
from treering.reproduction.tables import as_claims_table, as_cost_table, as_rows_table

__all__ = [
    "Claim",
    "Contrast",
    "Expert",
    "Finding",
    "Measured",
    "Reproduction",
    "ReproductionRecipe",
    "Verdict",
    "as_claims_table",
    "as_cost_table",
    "as_rows_table",
    "claims",
    "expected",
    "experts",
    "reproduce",
    "rows",
    "verdict",
]
