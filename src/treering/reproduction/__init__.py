"""A reproduction of the seed's papers at small scale: each claim of their abstracts tried, by rules written before."""

from treering.reproduction.claims import Claim, Contrast, Finding, Verdict, claims, verdict
from treering.reproduction.recipe import ReproductionRecipe
from treering.reproduction.reproduction import Reproduction, reproduce
from treering.reproduction.rows import Expert, expected, experts, rows
from treering.reproduction.tables import as_claims_table, as_cost_table, as_rows_table, drawn

__all__ = [
    "Claim",
    "Contrast",
    "Expert",
    "Finding",
    "Reproduction",
    "ReproductionRecipe",
    "Verdict",
    "as_claims_table",
    "as_cost_table",
    "as_rows_table",
    "claims",
    "drawn",
    "expected",
    "experts",
    "reproduce",
    "rows",
    "verdict",
]
