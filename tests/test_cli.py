"""The command line as a user meets it: messages, exit codes, files."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from biotorch import rules
from biotorch.cli import app

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_a_run_prints_its_table_and_writes_table_and_figure(tmp_path):
    result = invoke(
        "run",
        QUICKSTART,
        f"experiment.output_dir={tmp_path}",
        "training.hyperparameters.epochs=1",
        "sweep={model.mode.type: [backpropagation, dfa], experiment.seed: [0, 1]}",
    )
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "quickstart" / "table.md").read_text().splitlines()
    cells = [line.split("|") for line in lines if line.startswith(("| backpropagation", "| dfa"))]
    assert len(cells) == 2
    assert all("±" in row[2] and row[5].strip() == "2" for row in cells)
    assert cells[1][3].strip() == "-"  # DFA has no alignment angle
    with Image.open(tmp_path / "quickstart" / "angles.png") as figure:
        assert figure.width > 1000
    for shown in ("[4/4]", "table.md", "angles.png", "test error"):
        assert shown in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["run", QUICKSTART, "model.mode.type=faa"], "unknown rule 'faa'"),
        (["run", QUICKSTART, "model.architecture=resnet20"], "does not take the images"),
        (["run", QUICKSTART, "model.pretrained=true"], "no pretrained weights"),
        (["run", QUICKSTART, "training.optimizer.lr=[1"], "not valid YAML"),
        (["run"], "Missing argument"),
        (["rnu"], "No such command 'rnu'"),
    ],
)
def test_a_mistake_ends_with_a_message_and_code_2(arguments, message, tmp_path):
    if len(arguments) > 2:
        arguments = [*arguments, f"experiment.output_dir={tmp_path}"]
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_damaged_result_is_a_message_too(tmp_path):
    arguments = ["run", QUICKSTART, f"experiment.output_dir={tmp_path}", "sweep={}"]
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "results.json").write_text("{")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "results.json is damaged" in result.output


def test_rules_and_models_are_listed():
    listed = invoke("rules").output
    assert all(name in listed for name in rules.available())
    assert "le_net_mnist" in invoke("models").output


@pytest.mark.parametrize("flag", [["--config", QUICKSTART], [f"--config_file={QUICKSTART}"]])
def test_the_papers_command_is_the_same_as_run(flag, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmark.py"),
        *flag,
        f"experiment.output_dir={tmp_path}",
        "training.hyperparameters.epochs=1",
        "sweep={}",
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "quickstart" / "results.json").is_file()
