"""The README tells the truth: its files exist, its tables are whole. `test_pages` runs its blocks."""

import re

import pages
from places import ROOT

README = (ROOT / "README.md").read_text()


def test_the_papers_three_snippets_are_there():
    text = "\n".join(block.text for block in pages.blocks(ROOT / "README.md"))
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
