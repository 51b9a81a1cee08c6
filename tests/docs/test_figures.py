"""Pictures of the docs and the demo's table: what is committed is what `make figures` writes."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from places import ROOT

from biotorch import rules

IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def drawings():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        import drawings

        yield drawings


def test_the_committed_drawings_are_what_the_code_draws(drawings):
    files = drawings.render()
    assert {str(path.relative_to(IMAGES)) for path in IMAGES.rglob("*.svg")} == set(files)
    for name, content in files.items():
        ET.fromstring(content)
        assert (IMAGES / name).read_text() == content, f"{name}: run `make figures`"


def test_every_rule_is_drawn_with_its_title(drawings):
    assert list(drawings.DRAWINGS) == rules.available()
    for name in drawings.DRAWINGS:
        title = ET.parse(IMAGES / "rules" / f"{name}.svg").getroot()[0].text
        assert title.casefold() == rules.get(name).title.casefold()


def test_the_drawn_matrices_obey_the_rules(drawings):
    """B = W where all of W is transported, B has the signs of W where signs are, and the shape of W if not direct."""
    for name, layer in itertools.product(drawings.DRAWINGS, (2, 3)):
        weight, feedback = drawings.forward_weights(layer), drawings.feedback_weights(name, layer)
        outputs = 3 if drawings.DRAWINGS[name].direct else len(weight)
        assert (len(feedback), len(feedback[0])) == (outputs, len(weight[0])), name
        if rules.get(name).transports == "weights":
            assert feedback == weight, name
        if rules.get(name).transports == "signs":
            pairs = zip(itertools.chain(*weight), itertools.chain(*feedback), strict=True)
            assert all(w * b > 0 for w, b in pairs), name
        if name in ("fa", "dfa", "dkp", "sdfa", "drtp"):
            assert feedback != weight, name


def test_the_demos_table_is_that_of_the_published_runs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        import figures
    text = (ROOT / "README.md").read_text()
    assert re.search(r"<!-- demo -->\n\*\*.*<!-- /demo -->", text, flags=re.DOTALL)
    assert figures.with_table(text) == text, "run `make figures`"
