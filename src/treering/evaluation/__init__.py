"""What a model can do, in numbers with intervals, and in text."""

from treering.evaluation.attribution import Attribution, explain, require_composition
from treering.evaluation.bits import (
    Change,
    DocumentLosses,
    Score,
    document_losses,
    paired_change,
    uniform_losses,
)
from treering.evaluation.choice import (
    Ability,
    Question,
    abilities,
    as_abilities_table,
    choose,
    continuations,
    recalls,
    translations,
)
from treering.evaluation.forgetting import (
    Difference,
    Forgetting,
    as_change_table,
    code_switched,
    composition_losses,
    measure_forgetting,
)
from treering.evaluation.generation import generate, prompt_ids, require_one_way, require_room
from treering.evaluation.kinds import Kinds, Kinship, TogetherGain, as_kinds_table, find_kinds, kinds_of
from treering.evaluation.table import Row, as_table, bits_per_byte, held_out_texts, row, uniform_bits_per_byte

__all__ = [
    "Ability",
    "Attribution",
    "Change",
    "Difference",
    "DocumentLosses",
    "Forgetting",
    "Kinds",
    "Kinship",
    "Question",
    "Row",
    "Score",
    "TogetherGain",
    "abilities",
    "as_abilities_table",
    "as_change_table",
    "as_kinds_table",
    "as_table",
    "bits_per_byte",
    "choose",
    "code_switched",
    "composition_losses",
    "continuations",
    "document_losses",
    "explain",
    "find_kinds",
    "generate",
    "held_out_texts",
    "kinds_of",
    "measure_forgetting",
    "paired_change",
    "prompt_ids",
    "recalls",
    "require_composition",
    "require_one_way",
    "require_room",
    "row",
    "translations",
    "uniform_bits_per_byte",
    "uniform_losses",
]
