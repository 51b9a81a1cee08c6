"""Every family of networks under three rules: conversion, gradients, audit; what fails is known, with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import families
import pytest
from families import RULES, Family

LISTED = Path(__file__).parents[1].joinpath("docs", "families.md").read_text()

#: What does not work, and the reason: a problem of another kind, or none, fails the test.
KNOWN: dict[str, str] = {}


def every_family() -> list[Family]:
    found = list(families.TORCHVISION)
    for library in (families.hugging_face_families, families.timm_families):
        try:
            found += library()
        except ModuleNotFoundError:  # pragma: no cover - both are in the dev extra
            continue
    return found


FAMILIES = every_family()


def test_the_table_in_the_docs_lists_every_family():
    rows = re.findall(r"^\| ([^|]+?) \|", LISTED, flags=re.MULTILINE)
    assert [row for row in rows if row.split()[0] in ("torchvision", "timm", "transformers")] == [
        family.name for family in FAMILIES
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name.replace(" ", "-"))
def test_a_family_converts_trains_every_layer_and_passes_the_audit(family, rule):
    outcome = families.examine(family, rule)
    if family.name in KNOWN:
        assert re.search(KNOWN[family.name], outcome.problem), outcome
        return
    assert outcome.problem == ""
    expected = {"fa": 0.0, "usf": 0.5, "dfa": 0.0}[rule]
    # What is left on backpropagation transports its weights, and is named.
    assert outcome.leak == pytest.approx(expected) if not outcome.left else outcome.leak >= expected
