"""The conclusion on the page: what it says of made-up results, and what it must not say."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_results import made

from biotorch.report.page.comparison import conclusion, settings_of, title
from biotorch.report.page.overview import differences, dot_plot
from biotorch.results.collecting import Collection, Run


@pytest.fixture
def said(results):
    """The conclusion of runs, given as test errors by rule, one for each seed."""

    def say(**errors):
        [setting] = settings_of(collection(results[0], errors))
        return conclusion(setting)

    return say


def collection(result, errors, **changes):
    runs = [
        made(result, rule, error, seed, **changes) for rule, each in errors.items() for seed, error in enumerate(each)
    ]
    return Collection([Run(Path(f"{number}"), run) for number, run in enumerate(runs)], [], [])


def test_a_clear_difference_has_its_interval_and_says_which_is_better(said):
    lead, sure, *_ = said(backpropagation=[1.0, 1.2, 1.1], fa=[4.0, 4.4, 4.2], dfa=[9.0, 9.1, 9.2])
    assert lead == (
        "fa (feedback alignment) has the lowest test error of the 2 rules that do not transport the weights: 4.20 %, "
        "against 1.10 % with backpropagation."
    )
    assert sure == (  # differences 3.0, 3.2, 3.1: 0.1 / sqrt(3) times 4.303
        "The difference is +3.10 percentage points (95 % interval +2.85 to +3.35, 3 seeds): "
        "the interval excludes 0, and backpropagation is better."
    )


def test_seeds_are_paired(said):
    """The spread over seeds is large, but the differences at equal seeds are alike."""
    assert "excludes 0, and usf is better" in said(backpropagation=[2.0, 5.0, 9.0], usf=[1.0, 4.1, 7.9])[1]
    assert "includes 0" in said(backpropagation=[2.0, 5.0, 9.0], usf=[1.0, 9.0, 4.0])[1]


def test_one_seed_shows_nothing_for_sure(said):
    lead, sure = said(backpropagation=[1.0], fa=[1.5])
    assert lead == "fa (feedback alignment) has a test error of 1.50 %, against 1.00 % with backpropagation."
    assert sure == "One seed cannot show whether the difference of +0.50 percentage points is more than chance."


def test_rules_that_cannot_be_told_apart_are_named(said):
    said_ = said(backpropagation=[1.0, 1.1], fa=[4.0, 4.4], kp=[4.3, 4.2], dfa=[9.0, 9.4])
    assert "These seeds do not tell kp apart from fa: the 95 % intervals of the differences include 0." in said_
    assert not [each for each in said_ if "dfa" in each]


def test_signs_are_not_passed_off_as_nothing_and_rules_with_weights_not_counted(said):
    lead, _, *rest = said(backpropagation=[1.0], sa=[1.1], sham=[1.0], usf=[1.5], fa=[4.0], dfa=[3.0])
    assert "usf (uniform sign-concordant feedback) has the lowest test error of the 3 rules" in lead
    assert rest == [
        "usf does transport their signs; of the rules that transport nothing, dfa (direct feedback alignment) "
        "has the lowest: 3.00 %."
    ]
    assert "Every rule here transports the weights" in said(backpropagation=[1.0], sa=[1.1])[1]


def test_rules_that_learn_no_more_than_the_control_are_named(said):
    assert said(backpropagation=[1.0], fa=[4.0], dfa=[8.0], shallow=[7.0])[-1] == (
        "Not better than the control in which only the output layer learns (7.00 %): dfa."
    )


def test_without_backpropagation_and_alone_nothing_is_compared_with_it(said):
    lead, missing = said(fa=[4.0, 4.2], dfa=[8.0, 8.2])
    assert lead.endswith("of the 2 rules that do not transport the weights: 4.10 %.")
    assert missing == "Backpropagation was not run in this setting, so nothing shows what the rule costs."
    assert said(fa=[4.0, 4.2]) == [
        "fa (feedback alignment) reaches a test error of 4.10 % (2 seeds).", "No other rule was run.",
    ]  # fmt: skip


def test_a_seed_that_occurs_twice_gives_no_interval(results):
    one = collection(results[0], {"backpropagation": [1.0], "fa": [2.0]})
    again = Run(Path("again"), made(results[0], "fa", 2.5))
    [setting] = settings_of(Collection([*one.runs, again], [], []))
    assert conclusion(setting)[1].startswith("A seed occurs twice")
    assert differences([setting]) is None


def test_each_data_set_has_its_own_conclusion_and_a_regression_has_r2(results):
    errors = {"backpropagation": [1.0, 1.1], "fa": [2.0, 2.2]}
    runs = collection(results[0], errors, data__dataset="mnist").runs
    for rule, r2 in (("backpropagation", 0.5), ("fa", 0.25)):
        run = made(results[0], rule, data__dataset="diabetes")
        run["test"] = {"loss": 0.5, "rmse": 50.0, "r2": r2}
        runs.append(Run(Path(rule), run))
    classified, regressed = settings_of(Collection(runs, [], []))
    assert title(classified) == "le_net_mnist on mnist, SGD, 1 epoch"
    assert conclusion(regressed)[0].endswith("a test R² of 0.250, against 0.500 with backpropagation.")
    assert dot_plot(regressed)["scale"] == ""
    rows = differences([classified, regressed]).table
    assert rows.header == ["data set", "rule", "figure", "difference", "95 % interval", "n"]
    assert rows.rows[1] == ["diabetes", "fa", "test R²", "-0.250", "-", "1"]
    assert rows.title == "Difference to backpropagation: le_net_mnist, SGD, 1 epoch"


def test_intervals_that_exclude_zero_are_marked_and_columns_with_one_value_stand_in_the_title(results):
    errors = {"backpropagation": [1.0, 1.2, 1.1], "fa": [4.0, 4.4, 4.2], "dfa": [1.0, 1.3, 1.0]}
    rows = differences(settings_of(collection(results[0], errors))).table
    assert rows.header == ["rule", "difference", "95 % interval"]
    assert rows.rows == [["fa", "+3.10", "[+2.85, +3.35] *"], ["dfa", "0.00", "[-0.25, +0.25]"]]
    assert rows.title == "Difference to backpropagation in test error: le_net_mnist on digits, SGD, 1 epoch, 3 pairs"


def test_places_in_the_dot_plot_are_logarithms(results):
    errors = {"backpropagation": [1.0], "fa": [10.0], "dfa": [100.0]}
    plot = dot_plot(*settings_of(collection(results[0], errors)))
    first, middle, last = (row["mean"] for row in plot["rows"])
    assert first == plot["reference"]
    assert middle - first == pytest.approx(last - middle)
    assert {tick["text"]: tick["at"] for tick in plot["ticks"]}["10"] == middle
    assert [row["interval"] for row in plot["rows"]] == [None] * 3
    [row] = dot_plot(*settings_of(collection(results[0], {"fa": [1.0, 9.0]})))["rows"]
    assert row["cut"] == [True, True]  # the interval is 5 ± 50.8
    assert row["text"] == "5.00"


def test_a_single_difference_has_its_setting_in_the_heading(results):
    found = differences(settings_of(collection(results[0], {"backpropagation": [1.0], "fa": [4.0]})))
    assert found.table.header == ["rule", "difference"]
    assert found.table.rows == [["fa", "+3.00"]]
    assert found.table.title.endswith("one pair each, so no intervals")
