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
    folders, listed = [], set()
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name] if name.endswith("/") else []
        listed.add("".join([*folders[:depth], name]))
        assert len(line.split()) > 1, f"{name} is not described"
    for path in [*linked, *listed]:
        assert (ROOT / path).exists(), path
    source = ROOT / "src" / "biotorch"
    files = {str(path.relative_to(ROOT)) for path in source.rglob("*.py") if not path.stem.startswith("__")}
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in source.rglob("*.py")}
    rules = {path for path in files if path.startswith("src/biotorch/rules/")}  # a new one touches no list
    assert files - rules | folders <= listed


def test_the_table_has_every_rule_and_no_placeholder():
    table = README.split("## The demo")[1].split("##")[0]
    for rule in ("backpropagation", "fa", "dfa", "usf", "brsf", "frsf"):
        assert re.search(rf"\| {rule} \| \d", table), rule
    assert "RESULTS" not in README
