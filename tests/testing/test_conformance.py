"""Every registered rule keeps what the importable suite asks of every rule."""

import pytest
from rule_names import RULES

import biotorch.testing
from biotorch.testing import CHECKS
from biotorch.testing.processes import check_processes_of

SLOW = ("check_processes",)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "check", [pytest.param(c, id=c.__name__, marks=pytest.mark.slow if c.__name__ in SLOW else ()) for c in CHECKS]
)
def test_every_rule(check, rule):
    check(rule)


def test_all_rules_in_one_pair_of_processes():
    check_processes_of({rule: {} for rule in RULES})


@pytest.mark.slow
def test_all_in_one_call():
    biotorch.testing.check_rule("kp")
