"""Rules stand in one order in every listing, table and figure, whatever the order of imports, folders and sweeps."""

import json
import re

import pytest
from commands import invoke
from made_results import made

import biotorch
from biotorch import rules
from biotorch.report import table
from biotorch.report.angles import draw_angles
from biotorch.report.series import panels
from biotorch.results.collecting import collect
from biotorch.rules import registry

ORDER = (
    "backpropagation", "fa", "dfa", "usf", "brsf", "frsf",
    "kp", "wm", "ia", "sa", "dkp", "sdfa", "drtp", "shallow", "sham",
)  # fmt: skip
#: In an order that is neither that of the rules nor the alphabet's.
MIXED = ("usf", "dfa", "shallow", "kp", "backpropagation", "fa", "drtp")
SORTED = ["backpropagation", "fa", "dfa", "usf", "kp", "drtp", "shallow"]


@pytest.fixture
def own_rules():
    """Two rules of a user, registered against the alphabet."""
    before = dict(registry._REGISTRY)
    for name in ("own", "another"):
        rules.register(name, transports="nothing")(type(name, (rules.get("fa"),), {}))
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def test_rules_of_users_come_after_ours(own_rules):
    assert tuple(rules.available()) == (*ORDER, "own", "another")
    assert sorted(("none of ours", "another", "own", "sham", "bp"), key=registry.position) == [
        "bp", "sham", "own", "another", "none of ours",
    ]  # fmt: skip


def test_the_command_lists_them_in_this_order():
    assert tuple(re.findall(r"^(\w+)", invoke("rules").stdout, flags=re.MULTILINE)) == ORDER


def test_tables_frames_and_figures_have_this_order(results, tmp_path):
    """In each network by itself, with networks in the order in which they come."""
    networks = ("resnet20", "le_net_mnist")
    runs = [made(results[0], rule, model__architecture=name, seed=0) for rule in MIXED for name in networks]
    for number, run in enumerate(runs):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / "results.json").write_text(json.dumps(run))
    expected = [(name, rule) for name in networks for rule in SORTED]
    assert [tuple(row[:2]) for row in table(runs).rows] == expected
    assert [(title.split(",")[0], curve.name) for title, curves in panels(runs).items() for curve in curves] == expected
    frame = biotorch.results.load(tmp_path)
    assert list(zip(frame["architecture"], frame["rule"], strict=True)) == expected
    assert list(biotorch.results.summary(frame)["rule"]) == [rule for _, rule in expected]
    found = collect(tmp_path).results
    assert [
        (run["config"]["model"]["architecture"], run["config"]["model"]["mode"]["type"]) for run in found
    ] == expected


def test_a_legend_has_this_order_although_a_rule_is_missing_in_the_first_panel(results):
    runs = [made(results[0], rule) for rule in ("usf", "dfa", "fa")]
    for run in runs:
        angles = {} if run["config"]["model"]["mode"]["type"] == "dfa" else {"angles": {"conv": 60.0, "fc": 60.0}}
        run["history"] = [{"epoch": 0, "gradient_angles": {"conv": 50.0, "fc": 0.0}, **angles}]
    (legend,) = draw_angles(runs).legends
    assert [text.get_text() for text in legend.get_texts()] == ["fa", "dfa", "usf", "worst hidden layer"]
