"""Learning rates, found on the validation set."""

from __future__ import annotations

import math

import pytest
import yaml
from commands import invoke, mistake
from runs import quick, quick_file

from biotorch.errors import BrokenPointsError
from biotorch.experiment import ConfigError, Failure, read, run, search

RULES = "sweep={model.mode.type: [fa, usf], training.optimizer.lr: [0.5, 0.01], experiment.seed: [4, 5]}"


def fake(errors, asked=None):
    """Runs nothing: the validation error of a point is `errors(rule, rate)`; infinite: it diverges."""

    def run_all(study):
        results, failures = {}, {}
        for name, config in study.points.items():
            if asked is not None:
                asked.append(name)
            assert config.evaluation is False
            error = errors(config.model.mode.type, config.training.optimizer.lr)
            if math.isinf(error):
                failures[name] = Failure("diverged", "the loss is nan")
            else:
                results[name] = {"validation": {"error": error}}
        if failures:
            raise BrokenPointsError(results, failures, study)
        return results

    return run_all


def test_settings_are_points_without_seed_and_rate(tmp_path):
    found = search.settings(quick(tmp_path, RULES))
    assert [setting.name for setting in found] == ["rule=fa", "rule=usf"]
    assert [setting.conditions for setting in found] == [{"model.mode.type": "fa"}, {"model.mode.type": "usf"}]
    assert [setting.config.experiment.seed for setting in found] == [4, 4]


def test_the_grid_finds_the_rate_of_the_lowest_error_and_counts_divergence_as_worst(tmp_path):
    found = search.grid(
        quick(tmp_path, RULES),
        (1.0, 0.1, 0.01),
        fake(lambda rule, rate: math.inf if rate == 1 else abs(rate - (0.1 if rule == "fa" else 0.01))),
    )
    assert {setting.name: setting.best for setting in found} == {"rule=fa": 0.1, "rule=usf": 0.01}
    assert {setting.name: setting.at_the_edge for setting in found} == {"rule=fa": False, "rule=usf": True}
    assert list(search.as_refinements(found)) == [
        {"model.mode.type": "fa", "set": {"training.optimizer.lr": 0.1}},
        {"model.mode.type": "usf", "set": {"training.optimizer.lr": 0.01}},
    ]


def test_a_setting_that_always_diverges_has_no_rate(tmp_path):
    found = search.grid(quick(tmp_path, RULES), (1.0,), fake(lambda rule, rate: math.inf if rule == "fa" else 5.0))
    assert {setting.name: setting.best for setting in found} == {"rule=fa": None, "rule=usf": 1.0}
    assert len(list(search.as_refinements(found))) == 1


def test_what_breaks_for_another_reason_than_divergence_is_raised(tmp_path):
    def run_all(study):
        raise BrokenPointsError({}, {"rule=fa,lr=1": Failure("mistake", "no data")}, study)

    with pytest.raises(BrokenPointsError, match="no data"):
        search.grid(quick(tmp_path, RULES), (1.0,), run_all)


def test_optuna_comes_near_the_best_rate_and_a_stopped_search_asks_for_the_same_rates(tmp_path):
    def errors(rule, rate):
        return abs(math.log10(rate) - (-1 if rule == "fa" else -3))

    asked, again = [], []
    study = quick(tmp_path, RULES)
    found = search.by_optuna(study, 1e-5, 1.0, 25, 0, fake(errors, asked))
    search.by_optuna(study, 1e-5, 1.0, 25, 0, fake(errors, again))
    assert asked == again
    assert asked[0] == "rule=fa,lr=0.5"  # the configuration's own, first
    best = {setting.name: setting.best for setting in found}
    assert 0.03 < best["rule=fa"] < 0.3
    assert 3e-4 < best["rule=usf"] < 3e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("data.validation=test",), "chosen on the test set"), (("training=null", "model.checkpoint=x"), "no rate")],
)
def test_a_study_without_a_rate_to_choose_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        search.settings(quick(tmp_path, *overrides))


def test_the_only_setting_of_a_search_has_the_name_of_the_experiment(tmp_path):
    result = invoke("search", quick_file(tmp_path), "--rates", "0.02,1.0e-6", "--jobs", "1")
    assert "a better one may lie beyond it: quick." in " ".join(result.stdout.split())


@pytest.mark.parametrize("rates", ["0.1,x", "0.1,-1", "0.1,0.1", ""])
def test_rates_that_are_none_are_refused(tmp_path, rates):
    assert "rates" in mistake(invoke("search", quick_file(tmp_path), "--rates", rates))


def test_the_command_prints_what_a_configuration_takes(tmp_path):
    file = quick_file(tmp_path)
    result = invoke("search", file, "sweep={model.mode.type: [fa]}", "--rates", "0.02,1.0e-6", "--jobs", "1")
    assert result.exit_code == 0, result.output
    rates = yaml.safe_load((tmp_path / "quick" / "search" / "rates.yaml").read_text())
    assert rates == {"when": [{"model.mode.type": "fa", "set": {"training.optimizer.lr": 0.02}}]}
    tree = yaml.safe_load(file.read_text())
    tree["sweep"] = {"model.mode.type": ["fa"], **rates}
    file.write_text(yaml.safe_dump(tree))
    assert [each.training.optimizer.lr for each in read(file).points.values()] == [0.02]
    assert "no results" not in result.output
    # Nothing has looked at the test set, and the study's own folder holds no run.
    assert all(result["test"] is None for result in run(_searched(tmp_path)).values())
    assert not (tmp_path / "quick" / "results.json").exists()


def _searched(tmp_path):
    study = quick(tmp_path, "sweep={model.mode.type: [fa]}")
    points = {}
    search.grid(study, (0.02, 1e-6), lambda each: points.update(each.points) or fake(lambda *_: 1.0)(each))
    return type(study)(study.folder / "search", points)
