"""Configuration -> results: what a run writes, repeats, skips and refuses."""

import json
import random

import numpy as np
import pytest
import torch
import yaml

from biotorch import rules
from biotorch.experiment import ConfigError, read, run
from biotorch.experiment.config import points
from biotorch.experiment.results import load_results

QUICK = {
    "experiment": {"name": "quick", "seed": 3},
    "data": {"dataset": "digits", "target_size": 32},
    "model": {"architecture": "le_net_mnist", "mode": {"type": "fa"}},
    "training": {
        "hyperparameters": {"epochs": 1, "batch_size": 64},
        "optimizer": {"type": "Adam", "lr": 0.001},
        "metrics": {"weight_alignment": True, "weight_ratio": True, "gradient_alignment": True, "top_k": 3},
    },
}


@pytest.fixture
def config_file(tmp_path):
    tree = json.loads(json.dumps(QUICK))
    tree["experiment"]["output_dir"] = str(tmp_path / "runs")
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_run_writes_its_configuration_and_plain_figures(config_file, tmp_path):
    result = run(read(config_file))[""]
    folder = tmp_path / "runs" / "quick"
    assert json.loads((folder / "results.json").read_text()) == result == load_results(folder)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == result["config"]
    assert {"loss", "error", "top_3_error"} == set(result["test"])
    assert result["test"]["top_3_error"] <= result["test"]["error"] <= 100
    assert [record["epoch"] for record in result["history"]] == [0, 1]
    assert result["history"][1].keys() >= {"train", "validation", "angles", "norm_ratios", "gradient_angles"}
    assert {"torch", "device", "threads", "commit"} <= set(result["environment"])


def test_the_written_configuration_repeats_the_run(config_file, tmp_path):
    first = run(read(config_file))[""]
    written = tmp_path / "runs" / "quick" / "config.yaml"
    again = run(read(written, ["experiment.name=again"]))[""]
    assert again["history"][1]["train"] == first["history"][1]["train"]
    assert again["test"] == first["test"]
    other = run(read(written, ["experiment.name=other", "experiment.seed=4"]))[""]
    assert other["test"] != first["test"]


def test_a_run_leaves_the_random_state_of_the_caller_alone(config_file):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run(read(config_file))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_rule_starts_from_the_same_weights(config_file):
    grid = "sweep={model.mode.type: [" + ", ".join(rules.available()) + "]}"
    finished = run(read(config_file, [grid]))
    assert len(finished) == len(rules.available())
    # Before training, the network's outputs are those of W alone.
    assert len({result["history"][0]["validation"]["loss"] for result in finished.values()}) == 1


def test_finished_points_are_not_run_again_and_others_are_not_overwritten(config_file, tmp_path):
    calls = []
    config = read(config_file, ["sweep={experiment.seed: [0, 1]}"])
    first = run(config, on_epoch=lambda name, record: calls.append(name))
    assert set(calls) == {"seed=0", "seed=1"}
    calls.clear()
    assert run(config, on_epoch=lambda name, record: calls.append(name)) == first
    assert calls == []
    changed = read(config_file, ["sweep={experiment.seed: [0, 1]}", "training.optimizer.lr=0.01"])
    with pytest.raises(FileExistsError, match="another configuration"):
        run(changed)
    assert run(changed, overwrite=True)["seed=0"]["test"] != first["seed=0"]["test"]


def test_an_interruption_keeps_what_is_finished(config_file, tmp_path):
    config = read(config_file, ["sweep={experiment.seed: [0, 1]}"])

    def interrupt(name, record):
        if name == "seed=1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_epoch=interrupt)
    assert load_results(tmp_path / "runs" / "quick" / "seed=0") is not None
    assert load_results(tmp_path / "runs" / "quick" / "seed=1") is None


def test_a_damaged_result_is_named(config_file, tmp_path):
    run(read(config_file))
    path = tmp_path / "runs" / "quick" / "results.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        run(read(config_file))


def test_a_diverging_run_says_where_and_what_to_do(config_file):
    diverging = read(config_file, ["training.optimizer={type: SGD, lr: 1e20}"])
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d+: lower training\.optimizer\.lr"):
        run(diverging)


def test_a_network_that_does_not_fit_the_images_is_told_before_training(config_file):
    with pytest.raises(ConfigError, match=r"resnet20.*digits.*1x32x32"):
        run(read(config_file, ["model.architecture=resnet20"]))


def test_all_mistakes_are_listed_with_their_key_and_the_nearest_name(config_file):
    overrides = [
        "data.datset=mnist",
        "model.architecture=le_net_mnit",
        "model.mode.type=dfaa",
        "training.optimizer.type=Adamm",
        "training.hyperparameters.epochs=0",
    ]
    with pytest.raises(ConfigError) as caught:
        read(config_file, overrides)
    message = str(caught.value)
    assert "5 problem(s)" in message
    for part in (
        "data.datset: unknown key. Did you mean 'dataset'",
        "model.architecture: unknown architecture 'le_net_mnit'. Did you mean 'le_net_mnist'",
        "'dfaa'. Did you mean 'dfa'",
        "training.optimizer: unknown optimizer 'Adamm'. Did you mean 'Adam",
        "training.hyperparameters.epochs: ",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.dataset=mnits", "unknown data set 'mnits'. Did you mean 'mnist'"),
        ("model.mode.options.initt=xavier", "Did you mean 'init'"),
        ("training.optimizer.beta=1", "unknown argument of Adam 'beta'. Did you mean 'betas'"),
        ("sweep.model.mode.type=[fa]", "sweep.model"),
        ("sweep={model.mode.type: [fa, xa]}", "unknown rule 'xa'"),
        ("nonsense", "write key.path=value"),
        ("experiment.name.x=1", "name is a value, not a section"),
    ],
)
def test_a_mistake_is_explained(config_file, override, message):
    with pytest.raises(ConfigError, match=r".*") as caught:
        read(config_file, [override])
    assert message in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*none\.yaml"):
        read(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        read(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="holds no configuration"):
        read(tmp_path / "empty.yaml")


def test_the_papers_spellings_are_understood(config_file):
    with pytest.warns(UserWarning, match="Adam takes no momentum"):
        config = read(
            config_file,
            [
                "training.optimizer={type: Adam, lr: 1e-3, momentum: 0.9, betas: [0.9, 0.999]}",
                "training.lr_scheduler={type: multistep_lr, gamma: 0.1, milestones: [1]}",
                "training.metrics={layer_alignment: true, weight_ratio: true, top_k: 5, display_iterations: 500}",
            ],
        )
    assert config.training.metrics.weight_alignment
    assert config.training.optimizer.lr == 1e-3  # YAML reads 1e-3 as a string
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = config.training.optimizer.build([parameter])
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.9, 0.999)
    scheduler = config.training.lr_scheduler.build(optimizer)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert read(config_file, ["training.optimizer={type: RMSProp, lr: 0.1}"]).training.optimizer.type == "RMSProp"


def test_numbers_in_scientific_notation_are_numbers_everywhere(config_file):
    tree = yaml.safe_load(config_file.read_text())
    config_file.write_text(
        yaml.safe_dump(tree).replace("type: Adam", "type: Adam\n    weight_decay: 1e-3\n    eps: 1E-8")
    )
    config = read(config_file, ["training.lr_scheduler={type: multistep_lr, gamma: 1e-1, milestones: [1]}"])
    assert config.training.optimizer.model_extra == {"weight_decay": 1e-3, "eps": 1e-8}
    assert config.training.lr_scheduler.model_extra["gamma"] == 0.1


@pytest.mark.parametrize(
    "override",
    ["training.optimizer.weight_decay=-3", "training.optimizer.betas=7", "training.lr_scheduler={type: steplr}"],
)
def test_what_torch_refuses_is_told_before_training(config_file, override):
    with pytest.raises(ConfigError, match=r"training\.(optimizer|lr_scheduler): "):
        read(config_file, [override])


def test_an_override_takes_its_key_out_of_the_sweep(config_file):
    grid = "sweep={model.mode.type: [fa, dfa], experiment.seed: [0, 1]}"
    config = read(config_file, [grid, "model.mode.type=usf"])
    assert list(points(config)) == ["seed=0", "seed=1"]
    assert config.model.mode.type == "usf"


def test_what_the_sweep_sets_need_not_be_set_outside_of_it(config_file):
    overrides = ["model.mode={options: {shortcuts: cut}}", "sweep={model.mode.type: [dfa]}"]
    assert list(points(read(config_file, overrides))) == ["rule=dfa"]


def test_the_sweep_is_the_grid_of_its_axes(config_file):
    config = read(config_file, ["sweep={model.mode.type: [fa, dfa], experiment.seed: [0, 1]}"])
    assert list(points(config)) == ["rule=fa,seed=0", "rule=fa,seed=1", "rule=dfa,seed=0", "rule=dfa,seed=1"]
