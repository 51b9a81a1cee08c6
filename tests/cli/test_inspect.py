"""The commands beside `run`: evaluate, audit, schema, rules, models, and what `--help` teaches."""

import json
import re

import pytest
import torch
from commands import SHORT, into, invoke, mistake
from config_cases import write
from places import QUICKSTART

from biotorch import models, rules


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run, and what the command printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = invoke("run", QUICKSTART, *into(folder, *SHORT, "model.mode.type=fa", "training.metrics.top_k=3"))
    assert result.exit_code == 0, result.output
    return folder / "short", result


def test_evaluate_measures_a_run_again(trained):
    folder, _ = trained
    result = json.loads((folder / "results.json").read_text())
    for run in (folder, folder / "model_best_acc.pth", folder / "latest_model.pth"):
        measured = json.loads(invoke("evaluate", run, "--json").stdout)
        assert measured["split"] == "test"
        assert measured["examples"] == 360
        assert {key: measured[key] for key in result["test"]} == pytest.approx(result["test"])
        assert measured["accuracy"] == pytest.approx(100 - measured["error"])
    held_out = json.loads(invoke("evaluate", folder, "--split", "validation", "--which", "latest", "--json").stdout)
    assert held_out["error"] == pytest.approx(result["validation"]["error"])
    plain = invoke("evaluate", folder).stdout.splitlines()
    assert [line.split()[0] for line in plain] == ["split", "examples", "accuracy", "loss", "error", "top_3_error"]


def test_evaluate_takes_other_data_by_an_override(trained, tmp_path):
    folder, _ = trained
    short = json.loads(invoke("evaluate", folder, "data.batch_size=7", "data.validation_size=100", "--json").stdout)
    assert short["data"]["validation"] == 100
    assert "does not take the examples" in mistake(invoke("evaluate", folder, "data.target_size=8"))
    told = mistake(invoke("evaluate", folder, "data.datset=mnist"))
    assert "override data.datset=mnist: data.datset: unknown key. Did you mean 'dataset'" in told
    assert "only data and infrastructure" in mistake(invoke("evaluate", folder, "experiment.name.x=1"))
    assert "not an override" in mistake(invoke("evaluate", folder, "nonsense"))


@pytest.mark.parametrize(
    "override",
    ["model.mode.type=dfa", "model.architecture=le_net_cifar", "training.optimizer.lr=1", "evaluation=false",
     "sweep={model.mode.type: [dfa]}", "experiment.name=other"],
)  # fmt: skip
def test_evaluate_refuses_an_override_that_would_change_nothing(trained, override):
    assert override.partition("=")[0] in mistake(invoke("evaluate", trained[0], override))


def test_a_config_without_training_evaluates_a_checkpoint(trained, tmp_path):
    folder, _ = trained
    lines = [
        "experiment: {name: evaluated}",
        "data: {dataset: digits, target_size: 32}",
        f"model: {{checkpoint: {folder}}}",
    ]
    path = write(tmp_path, "\n".join(lines))
    result = invoke("run", path, f"experiment.output_dir={tmp_path}")
    assert result.exit_code == 0, result.output
    figures = [json.loads((run / "results.json").read_text())["test"] for run in (tmp_path / "evaluated", folder)]
    assert figures[0]["error"] == pytest.approx(figures[1]["error"])
    audited = invoke("audit", path)
    assert audited.exit_code == 0, (audited.output, audited.exception)


def test_files_that_are_no_checkpoint_are_refused(trained, tmp_path):
    cut, empty, code = (tmp_path / name for name in ("cut.pth", "empty.pth", "code.pth"))
    cut.write_bytes((trained[0] / "model_best_acc.pth").read_bytes()[:1000])
    empty.touch()
    torch.save({"model": torch.nn.Linear(1, 1), "config": {}}, code)
    for path in (cut, empty, code):
        assert str(path) in mistake(invoke("evaluate", path))


def test_audit_prints_what_each_layer_transports():
    result = invoke("audit", QUICKSTART, "sweep={model.mode.type: [backpropagation, fa]}")
    assert result.exit_code == 0, result.output
    backpropagation, fa = result.stdout.split("rule=fa\n")
    assert "all 5 layers transport weights" in backpropagation
    assert "leak 0.00: all 5 layers transport nothing" in fa


def test_audit_prints_a_network_once_however_many_seeds_it_has():
    printed = invoke("audit", QUICKSTART, "sweep={model.mode.type: [fa, DFA], experiment.seed: [0, 1]}").stdout
    heads = [line for line in printed.splitlines() if line.startswith("rule=")]
    assert heads == [
        "rule=fa,seed=0 (the same network: rule=fa,seed=1)",
        "rule=dfa,seed=0 (the same network: rule=dfa,seed=1)",
    ]
    assert printed.count("\nlayer ") == 2


def test_rules_models_and_schema_are_printed():
    listed = invoke("rules").stdout
    for name in rules.available():
        first = rf"^{name} +{re.escape(rules.get(name).title)}( \(experimental\))?$"
        assert re.search(first, listed, flags=re.MULTILINE), name
    assert "shortcuts" in listed
    assert set(models.available()) <= set(invoke("models").stdout.split())
    assert json.loads(invoke("schema").stdout)["properties"].keys() >= {
        "experiment",
        "data",
        "model",
        "training",
        "sweep",
    }


def test_help_teaches():
    general = invoke("--help").output
    assert all(name in general for name in ("run", "evaluate", "audit", "schema", "rules", "models", "Exit codes"))
    for command in ("run", "evaluate", "audit"):
        assert "key.path=value" in invoke(command, "--help").output
    taught = invoke("run", "--help").output
    for part in ("biotorch run quickstart", "data.dataset=mnist", "--overwrite", "torchrun", "--debug", "Exit codes"):
        assert part in taught
    assert "yaml-language-server" in invoke("schema", "--help").output
    assert "--split" in invoke("evaluate", "--help").output
