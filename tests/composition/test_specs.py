from __future__ import annotations

import pytest

from treering.composition import RULES, rule
from treering.errors import TreeringError

SPECS = [*RULES, "weighted:pool=log", "evidence:switch=0.1", "top_k:k=2", "gate:pool=log,switch=0.1"]


def test_a_rule_is_read_back_from_its_name():
    for spec in SPECS:
        assert str(rule(spec)) == str(rule(str(rule(spec))))
    assert str(rule("evidence:switch=0.010")) == "evidence:switch=0.01"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("median", r"no composition rule 'median'.*mean"),
        ("oracle", "a yardstick"),
        ("evidence:swich=0.1", "did you mean 'switch'"),
        ("evidence:switch=1", "less than 1"),
        ("evidence:switch=often", "switch: input should be a valid number"),
        ("top_k:k=0", "greater than or equal to 1"),
        ("gate:pool=round", "'linear' or 'log'"),
        ("mean:k=1", "there is no such field"),
    ],
)
def test_rules_that_do_not_exist_are_refused(spec, message):
    with pytest.raises(TreeringError, match=message):
        rule(spec)
