"""A conformance suite for learning rules, the package's own and those of others.

Every check is a function of a rule's name (and options) that raises AssertionError where the rule does not keep what
every rule promises. With pytest:

    import my_rules  # registers "mine"
    @pytest.mark.parametrize("check", biotorch.testing.CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check("mine")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from biotorch.testing.checks import (
    LAYER_NAMES,
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
    check_adding_up,
    check_compiling,
    check_copies,
    check_learning,
    check_looking,
    check_outputs,
    check_precision,
    check_repeating,
    check_resuming,
    check_transport,
    check_true_gradients,
    check_zoo,
    collect,
    gradients,
    images,
    loss_of,
    net,
)
from biotorch.testing.processes import check_processes

__all__ = [
    "CHECKS",
    "LAYER_NAMES",
    "Check",
    "Net",
    "assert_all_learn",
    "assert_close",
    "assert_identical",
    "check_adding_up",
    "check_compiling",
    "check_copies",
    "check_learning",
    "check_looking",
    "check_outputs",
    "check_precision",
    "check_processes",
    "check_repeating",
    "check_resuming",
    "check_rule",
    "check_transport",
    "check_true_gradients",
    "check_zoo",
    "collect",
    "gradients",
    "images",
    "loss_of",
    "net",
]

Check = Callable[..., None]

#: Every check, the quick ones first.
CHECKS: tuple[Check, ...] = (
    check_outputs,
    check_learning,
    check_repeating,
    check_adding_up,
    check_looking,
    check_copies,
    check_resuming,
    check_precision,
    check_true_gradients,
    check_transport,
    check_compiling,
    check_zoo,
    check_processes,
)


def check_rule(rule: str, **options: Any) -> None:
    """All checks of a rule, one after another; raises at the first that fails."""
    for check in CHECKS:
        check(rule, **options)
