"""The README tells the truth: its Python runs, its files exist, its commands are real."""

import re

import pytest
from places import ROOT

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::biotorch.ConversionWarning")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number):
    exec(SNIPPETS[number], {})


def test_the_papers_three_snippets_are_there():
    text = "\n".join(SNIPPETS)
    for line in ("from biotorch.models.fa import resnet18", "self.conv1 = Conv2d(", "mode='frsf'"):
        assert line in text


def test_linked_and_listed_files_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert linked
    tree = re.search(r"## The house\n\n```\n(.*?)```", README, flags=re.DOTALL).group(1)
    folder, listed = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            listed.append(folder + name)
        else:
            folder = name if name.endswith("/") else ""
            listed.append(name)
    for path in [*linked, *listed]:
        assert (ROOT / path).exists(), path
    packages = {f"src/biotorch/{path.parent.name}/" for path in (ROOT / "src" / "biotorch").glob("*/__init__.py")}
    assert packages <= set(listed)


def test_the_table_has_every_rule_and_no_placeholder():
    table = README.split("## The demo")[1].split("##")[0]
    for rule in ("backpropagation", "fa", "dfa", "usf", "brsf", "frsf"):
        assert re.search(rf"\| {rule} \| \d", table), rule
    assert "RESULTS" not in README
