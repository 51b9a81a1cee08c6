"""Registration of rules in a notebook, where a cell may be run again."""

import pytest

from biotorch import rules
from biotorch.rules import registry


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a test registers disappears with it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def cell(name, module="__main__"):
    kind = type(name, (rules.FeedbackRule,), {"__module__": module, "__qualname__": name})
    return rules.register("mine", transports="nothing")(kind)


def test_the_class_of_a_cell_that_is_run_again_replaces_the_earlier_one():
    first, again = cell("Mine"), cell("Mine")
    assert first is not again
    assert rules.get("mine") is again


@pytest.mark.parametrize("other", [("Other",), ("Mine", "my_module")])
def test_any_other_class_of_the_name_is_refused(other):
    cell("Mine")
    with pytest.raises(ValueError, match="'mine' is already registered, by module __main__"):
        cell(*other)
