"""Conformance suite for learning rules, both the package's own and rules of your own.

Every check is a function of a rule's name (and options). It raises AssertionError if the rule breaks a promise that
every rule makes. With pytest:

    import my_rules  # registers "mine"
    @pytest.mark.parametrize("check", biotorch.testing.CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check("mine")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from biotorch.testing.checks import (
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
)
from biotorch.testing.network import (
    LAYER_NAMES,
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
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

#: All checks, the quick ones first.
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
    """Run all checks on a rule, one after another. Raises AssertionError at the first failure.

    Examples:
        >>> biotorch.testing.check_rule("fa")
    """
    for check in CHECKS:
        check(rule, **options)
