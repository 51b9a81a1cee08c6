"""The notebooks run from an empty folder on small settings, and are saved with outputs that a run has made."""

from __future__ import annotations

import re

import nbformat
import pytest
from examples.execute import executed
from places import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
#: Settings under which a notebook takes a few seconds, and its claims still hold.
SMALL = {
    "1_angles": {"EPOCHS": 6},
    "2_rule": {"EPOCHS": 3, "EVERY": (1, 7, 37)},
    "4_robustness": {"EPOCHS": 10, "IMAGES": 100, "QUERIES": 100},
    "6_inside": {"EPOCHS": 15},
}


def pictures(notebook):
    return [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]


def require_as_saved(path, settings=None):
    """Every cell runs, the claims of the notebook hold, and it shows as many figures as its saved version."""
    found, saved = executed(path, settings), nbformat.read(path, as_version=4)
    assert [cell.source for cell in found.cells] == [cell.source for cell in saved.cells]
    assert len(pictures(found)) == len(pictures(saved)) > 0


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_on_small_settings(name):
    require_as_saved(ROOT / "examples" / f"{name}.ipynb", SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_its_own_settings(path):
    require_as_saved(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_as_it_was_executed(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 300_000
    text = "\n".join(
        str(output) for cell in code for output in cell.outputs if "image/png" not in output.get("data", {})
    )
    assert not re.search(r"/(home|root|work|tmp|Users)/", text), "a path of the machine that executed it"


def test_links_of_notebooks_lead_to_files():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(c.source for c in cells if c.cell_type == "markdown"))
        for link in links:
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="no setting EPOCH"):
        executed(NOTEBOOKS[0], {"EPOCH": 1})
