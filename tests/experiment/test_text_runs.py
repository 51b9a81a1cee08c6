"""Runs on a text: every rule end to end, what they leave on disk, resuming, evaluating, auditing."""

import csv
import json
import re
import signal

import pytest
import runs
import torch
from commands import into, invoke, mistake
from networks import same, state
from torch import nn

import biotorch
from biotorch import data
from biotorch.experiment import CheckpointError, ConfigError, Display, Interrupted, run
from biotorch.experiment.measure import evaluate_run
from biotorch.report import table
from biotorch.training import LossConfig, Trainer, TrainingConfig, evaluate

LENGTH = 8


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """2,000 characters in which many are known from those before them."""
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text(("jack and jill went up the hill to fetch a pail of water; " * 40)[:2000])
    return path


def settings(text, *overrides):
    return (
        f"data={{dataset: 'text:{text}', sequence_length: {LENGTH}}}",
        "model.architecture=char_transformer",
        "model.arguments={width: 16, depth: 1, heads: 2}",
        "training.hyperparameters={epochs: 2, batch_size: 32}",
        "training.optimizer={type: AdamW, lr: 0.01}",
        *overrides,
    )


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The results of a sweep over rules and the control, and its folder."""
    folder = tmp_path_factory.mktemp("rules")
    cases = ", ".join(f"{rule}: {{model.mode.type: {rule}}}" for rule in ("backpropagation", "fa", "dfa", "usf"))
    sweep = f"sweep={{rule: {{{cases}, shallow: {{model.mode.type: backpropagation, model.train_only: [head]}}}}}}"
    return run(
        runs.quick(folder, *settings(text, sweep, *runs.ALL_METRICS, "training.hyperparameters.epochs=4"))
    ), folder / "quick"


# End to end ----------------------------------------------------------------------------------------


def test_every_rule_learns_something_of_a_text(finished):
    results, _ = finished
    assert len(results) == 5
    for name, result in results.items():
        first, last = result["history"][0], result["history"][-1]
        assert last["validation"]["perplexity"] < 0.7 * first["validation"]["perplexity"], name
        assert last["train"]["error"] < first["validation"]["error"], name
        trained = {"head"} if "shallow" in name else {"head", "blocks.0.linear1", "blocks.0.linear2"}
        assert trained <= last["gradient_angles"].keys(), name
    deep, shallow = (results[f"rule={name}"]["test"]["perplexity"] for name in ("backpropagation", "shallow"))
    assert deep < shallow


def test_figures_are_per_character_and_everywhere(finished):
    results, folder = finished
    for name, result in results.items():
        for figures in (result["test"], result["validation"], result["history"][1]["train"]):
            assert figures.keys() == {"loss", "error", "top_3_error", "perplexity"}
            assert torch.tensor(figures["loss"]).exp() == pytest.approx(figures["perplexity"], rel=1e-4)
        assert result["history"][1]["examples_per_second"] == pytest.approx(
            result["data"]["train"] / result["history"][1]["seconds"]
        )
        with (folder / name / "results.csv").open(newline="") as file:
            rows = {row["split"]: row for row in csv.DictReader(file)}
        assert float(rows["test"]["perplexity"]) == result["test"]["perplexity"]
        assert rows["test"]["train_only"] == ("head" if "shallow" in name else "")
        curves = runs.curves(folder / name)
        assert [value for _, value in curves["perplexity/validation"]] == pytest.approx(
            [record["validation"]["perplexity"] for record in result["history"]]
        )


def test_the_table_has_a_perplexity_and_tells_the_control_apart(finished):
    results, _ = finished
    rows = table(list(results.values()))
    assert rows.header[:3] == ["rule", "test error (%)", "test perplexity"]
    assert [row[0] for row in rows.rows] == ["backpropagation", "fa", "dfa", "usf", "shallow (head only)"]
    for row, result in zip(rows.rows, results.values(), strict=True):
        assert row[2] == f"{result['test']['perplexity']:.2f}"


def test_progress_and_table_of_the_command(text, tmp_path):
    file = runs.quick_file(tmp_path)
    result = invoke("run", file, *settings(text, "training.metrics.display_iterations=4"))
    assert result.exit_code == 0, result.output
    figures = r"loss [\d.]+, error [\d.]+ %, perplexity [\d.]+"
    rest = r"[\d,]+ examples/s"
    assert re.search(rf"update 4/7: {figures}, {rest}\n", result.stdout)
    assert re.search(
        rf"epoch 1/2: {figures}, validation error [\d.]+ %, perplexity [\d.]+, {rest}, \d+ s left", result.stdout
    )
    assert re.search(r"quick: test error [\d.]+ %, perplexity [\d.]+, ", result.stdout)
    assert "test perplexity" in (tmp_path / "quick" / "table.md").read_text()


def test_the_network_is_rebuilt_for_the_length_that_it_was_trained_with(finished, text):
    results, folder = finished
    splits = data.load(data.DataConfig(dataset=f"text:{text}", sequence_length=LENGTH), seed=0)
    for name, result in results.items():
        model = biotorch.load(folder / name)
        assert model.position.num_embeddings == LENGTH
        assert evaluate(model, splits.test, LossConfig().build(), 3) == pytest.approx(result["test"], rel=1e-5)


# Exact ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"ignore_index": 1}, {"weight": [1.0, 5.0] + [1.0] * 17}])
def test_accumulated_batches_of_a_text_are_one_large_batch(arguments, text):
    splits = data.load(data.DataConfig(dataset=f"text:{text}", sequence_length=LENGTH), seed=0)
    assert splits.num_outputs == 19

    def trained(batch_size, accumulate):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(19, 6), nn.Linear(6, 19))
        config = TrainingConfig.model_validate(
            {
                "hyperparameters": {"epochs": 1, "batch_size": batch_size, "accumulate": accumulate},
                "optimizer": {"type": "SGD", "lr": 0.5},
            }
        )
        trainer = Trainer(model, splits, config, LossConfig(**arguments).build(), seed=0)
        return model[1].weight, trainer.run()[1]["train"]

    (whole, figures), (parts, again) = trained(32, 1), trained(8, 4)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert again == pytest.approx(figures, rel=1e-4)


def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(text, tmp_path):
    class Stop(Display):
        def update(self, trainer):
            if (trainer.epoch, trainer.step) == (2, 5):
                signal.raise_signal(signal.SIGTERM)

    overrides = settings(text, *runs.ALL_METRICS, "model.mode.type=brsf", "model.arguments.dropout=0.2")
    runs.finish(tmp_path / "whole", *overrides)
    with pytest.raises(Interrupted):
        run(runs.quick(tmp_path / "stopped", *overrides), display=Stop())
    runs.finish(tmp_path / "stopped", *overrides)
    whole, stopped = (runs.left_behind(tmp_path / name / "quick") for name in ("whole", "stopped"))
    assert whole == stopped


# Evaluating and auditing -----------------------------------------------------------------------------


def test_a_run_is_measured_again_and_on_another_text_of_the_same_characters(finished, tmp_path):
    results, folder = finished
    run_folder = folder / "rule=fa"
    again = evaluate_run(run_folder)
    assert again["perplexity"] == pytest.approx(results["rule=fa"]["test"]["perplexity"])
    assert again["examples"] == results["rule=fa"]["data"]["test"]
    characters = again["data"]["characters"]
    (tmp_path / "other.txt").write_text((characters + characters[::-1]) * 40)
    other = evaluate_run(run_folder, overrides=[("data.dataset", f"text:{tmp_path / 'other.txt'}")])
    assert other["perplexity"] > again["perplexity"]
    (tmp_path / "upper.txt").write_text((characters.upper() + characters[::-1].upper()) * 40)
    with pytest.raises(ConfigError, match=r"was trained on the characters .*jkl.*JKL"):
        evaluate_run(run_folder, overrides=[("data.dataset", f"text:{tmp_path / 'upper.txt'}")])
    with pytest.raises(ConfigError, match=r"does not take the examples .*16, see data\.sequence_length"):
        evaluate_run(run_folder, overrides=[("data.sequence_length", 16)])


def test_a_checkpoint_of_another_format_is_told(finished, tmp_path):
    _, folder = finished
    content = torch.load(folder / "rule=fa" / "latest_model.pth", weights_only=True)
    assert content["format"] == 2
    assert content["input_shape"] == [LENGTH]
    torch.save({**content, "format": 1}, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=r"old\.pth was written by another version .* format 1 instead of 2"):
        biotorch.load(tmp_path / "old.pth")


def test_a_run_begun_in_another_format_is_not_continued(text, tmp_path):
    runs.finish(tmp_path, *settings(text))
    folder = tmp_path / "quick"
    (folder / "results.json").unlink()
    content = torch.load(folder / "latest_model.pth", weights_only=True)
    torch.save({**content, "format": 1}, folder / "latest_model.pth")
    with pytest.raises(CheckpointError, match="with --overwrite"):
        runs.finish(tmp_path, *settings(text))
    runs.finish(tmp_path, *settings(text), overwrite=True)


def test_a_checkpoint_knows_its_architecture_and_arguments(finished, text, tmp_path):
    results, folder = finished
    start = settings(text, f"model={{checkpoint: {folder / 'rule=fa'}}}")
    result = runs.finish(tmp_path, start[0], *start[3:])
    assert result["config"]["model"]["arguments"] == {"width": 16, "depth": 1, "heads": 2}
    expected = results["rule=fa"]["history"][results["rule=fa"]["best_epoch"]]["validation"]["perplexity"]
    assert result["history"][0]["validation"]["perplexity"] == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["backpropagation", "fa", "dfa"])
def test_the_audit_takes_a_text(rule, text, tmp_path):
    result = invoke("audit", runs.quick_file(tmp_path), *settings(text, f"model.mode.type={rule}"))
    assert result.exit_code == 0, result.output
    assert "blocks.0.linear1" in result.stdout
    verdict = "weights" if rule == "backpropagation" else "nothing"
    assert re.search(rf"blocks\.0\.linear1\S* .*{verdict}", result.stdout), result.stdout


# Mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.arguments.widht=3"], r"model\.arguments.*widht"),
        (["model.arguments.heads=3"], r"model\.arguments.*heads=3"),
        (["model.arguments.num_classes=3"], r"model\.arguments\.num_classes: is set by the data"),
        (["model.architecture=char_transfomer", "model.arguments={}"], "Did you mean 'char_transformer'"),
        (["model.architecture=le_net_mnist", "model.arguments={}"], r"le_net_mnist.*\(8, see data\.sequence_length\)"),
        (["data.sequence_length=5000"], "take a longer text, a smaller"),
        (["data.target_size=8"], "target_size: a setting of images"),
        (["model.loss_function.weight=[1, 2]"], "does not take the network's outputs"),
    ],
)
def test_a_mistake_is_one_message(overrides, told, text, tmp_path):
    said = mistake(invoke("run", runs.quick_file(tmp_path), *settings(text, *into(tmp_path, *overrides))))
    assert re.search(told, said), said


def test_the_results_hold_the_characters_as_json(finished):
    _, folder = finished
    record = json.loads((folder / "rule=dfa" / "results.json").read_text())["data"]
    assert record["vocabulary"] == len(record["characters"]) == 19
    assert same(state(biotorch.load(folder / "rule=dfa", "latest")), runs.weights(folder / "rule=dfa/latest_model.pth"))
