"""Every family of networks under three rules: conversion, gradients, audit; what fails is known, with its reason."""

from __future__ import annotations

import re

import families
import pytest
from families import RULES
from places import ROOT

LISTED = (ROOT / "docs" / "families.md").read_text()


FAMILIES = families.every_family()


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
    assert outcome.problem == ""
    assert outcome.verdicts == ({"fa": "nothing", "usf": "signs", "dfa": "nothing"}[rule],)
    assert outcome.leak is not None
    if outcome.left:  # named, and some of them transport their weights
        assert outcome.leak < 1
    else:
        assert outcome.leak == {"fa": 0.0, "usf": 0.5, "dfa": 0.0}[rule]
