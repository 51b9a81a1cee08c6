"""Memory is estimated before it is taken, also without psutil and in a container."""

import sys

import pytest

from biotorch import _memory
from biotorch.errors import NotEnoughMemoryError, kind_of


def test_what_does_not_fit_is_told_with_both_figures(monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda: 3 * 2**30)
    _memory.require(3 * 2**30, "A network")
    with pytest.raises(NotEnoughMemoryError) as caught:
        _memory.require(4500 * 2**30, "A network")
    told = "A network would take 4,500.0 GiB of memory, but this machine has 3.0 GiB available."
    assert (str(caught.value), kind_of(caught.value)) == (told, "mistake")
    monkeypatch.setattr(_memory, "available", lambda: None)
    _memory.require(2**80, "On a system that does not say, anything")


@pytest.mark.parametrize("psutil", [True, False])
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, psutil):
    if not psutil:
        monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(_memory, "_LIMIT", tmp_path / "memory.max")
    machine = _memory.available()
    assert machine > 2**20
    for limit, found in (("max", machine), ("1048576", 2**20)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert _memory.available() == pytest.approx(found, rel=0.5)
