"""docs/rules.md: its table is the registry's, its options are all there are, its examples run."""

import re
import statistics
import sys

import pytest
import yaml
from places import ROOT
from rule_names import RULES

from biotorch import rules
from biotorch.experiment import read
from biotorch.experiment.results import Result
from biotorch.results.collecting import collect
from biotorch.results.groups import by_configuration, label, mean_angle
from biotorch.rules.registry import group_options

TEXT = (ROOT / "docs" / "rules.md").read_text()
#: By rule: experimental, first words of the second column, transports, paper.
METHODS = {
    name: (bool(experimental), title, transports, paper)
    for name, experimental, title, transports, paper in re.findall(
        r"^\| `(\w+)`(?: \(`\w+`\))?( \(experimental\))? \| ([^|:(]+\b)[^|]* \| (nothing|signs|weights) \| ([^|]+) \|$",
        TEXT,
        flags=re.MULTILINE,
    )
}


def section(title: str) -> str:
    return TEXT.split(f"# {title}")[1].split("\n#")[0]


def test_the_method_table_is_the_registry():
    assert list(METHODS) == RULES
    for name, (experimental, title, transports, _) in METHODS.items():
        rule = rules.get(name)
        assert (experimental, title, transports) == (rule.experimental, rule.title, rule.transports), name


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_paper_of_the_table_is_that_of_the_docstring(name):
    assert set(re.findall(r"\b(?:19|20)\d\d\b", METHODS[name][3])) <= set(
        re.findall(
            r"\b(?:19|20)\d\d\b", str(sys.modules[rules.get(name).__module__].__doc__) + str(rules.get(name).__doc__)
        )
    )


def test_every_option_of_every_rule_is_described():
    described: dict[str, set[str]] = {name: set() for name in RULES}
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section("Options"), flags=re.MULTILINE)
    for options, of in rows:
        for name in RULES if of == "all" else re.findall(r"`(\w+)`", of):
            described[name] |= set(re.findall(r"`(\w+)`", options))
    for name in RULES:
        assert described[name] - {"option"} == {*rules.option_names(name), *group_options(name)}, name


def test_the_defaults_of_the_table_are_the_rules():
    for name in ("wm", "sa", "ia"):
        row = re.search(rf"^\| ([^|]+) \| `{name}` \|", section("Options"), flags=re.MULTILINE)[1]
        rule = rules.make(name)
        told = re.findall(r"`(\w+)` ([\d.]+)", row)
        assert told
        for option, value in told:
            assert getattr(rule, option) == float(value), (name, option)


def test_the_configuration_is_valid(tmp_path):
    text = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    text.pop("sweep")
    text["model"] = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)[1])["model"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(text))
    read(tmp_path / "study.yaml")


@pytest.mark.parametrize("title", ["le_net_mnist on MNIST", "le_net_cifar on CIFAR-10", "Time per step"])
def test_every_rule_was_measured(title):
    assert re.findall(r"^\| (\w+) \| [\d.]+", section(title), flags=re.MULTILINE) == RULES


def row(group: list[Result], groups: list[list[Result]]) -> str:
    """A line of the tables of errors and angles: seeds of one of the configurations."""
    errors = [result["test"]["error"] for result in group]
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    weights, first, last = (
        [mean_angle(result, key, epoch) for result in group]
        for key, epoch in (("angles", -1), ("gradient_angles", 0), ("gradient_angles", -1))
    )
    shown = [f"{statistics.fmean(angles):.0f}" if None not in angles else "-" for angles in (weights, first, last)]
    name = label(group, groups)
    return f"| {name} | {statistics.fmean(errors):.2f}{spread} | {shown[0]} | {shown[1]} → {shown[2]} | {len(errors)} |"


@pytest.mark.parametrize(
    ("study", "title"),
    [
        ("mnist", "le_net_mnist on MNIST"),
        ("cifar10", "le_net_cifar on CIFAR-10"),
        ("resnet20", "resnet20 on CIFAR-10"),
    ],
)
def test_the_figures_are_those_of_the_results(study, title):
    """The rows of the table are the runs in `results/`, and each has its row."""
    groups = by_configuration(collect(ROOT / "results" / "learned" / study).results)
    told = [line for line in section(title).splitlines() if re.match(r"\| .* \d \|$", line)]
    assert sorted(told) == sorted(row(group, groups) for group in groups)
