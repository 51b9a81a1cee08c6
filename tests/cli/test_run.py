"""The command line as a user meets it: what `run` prints, and how mistakes end."""

import importlib
import io
import os
import pty
import re
import subprocess
import sys

import pytest
from commands import SHORT, into, invoke, mistake
from config_cases import CONFIGS
from PIL import Image
from places import QUICKSTART, ROOT
from rich.console import Console

from biotorch.experiment import read
from biotorch.experiment.display import Progress

# run ---------------------------------------------------------------------------------------------


def test_a_run_prints_its_table_and_writes_table_and_figure(tmp_path):
    grid = "sweep={model.mode.type: [backpropagation, dfa], experiment.seed: [0, 1]}"
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, grid), "--jobs", "1")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "short" / "table.md").read_text().splitlines()
    cells = [line.split("|") for line in lines if line.startswith(("| backpropagation", "| dfa"))]
    assert len(cells) == 2
    assert all("±" in row[2] and row[5].strip() == "2" for row in cells)
    assert cells[1][3].strip() == "-"  # DFA has no alignment angle
    with Image.open(tmp_path / "short" / "angles.png") as figure:
        assert figure.width > 1000
    for shown in (
        "[4/4] rule=dfa,seed=1: test error",
        "table.md",
        "angles.png",
        "page.html",
        f"results {tmp_path / 'short'}",
    ):
        assert shown in result.stdout
    assert result.stderr == ""
    again = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, grid))
    assert again.exit_code == 0
    assert "epoch 1" not in again.stdout


FIGURES, RATE = r"loss [\d.]+, error [\d.]+ %", r"[\d,]+ examples/s"
EPOCH = rf"\[1/1\] short epoch \d/2: {FIGURES}, validation error [\d.]+ %, {RATE}, \d+ s left"
UPDATE = rf"\[1/1\] short epoch \d, update \d/\d+: {FIGURES}, {RATE}"


def test_without_a_terminal_there_is_one_plain_line_per_epoch(tmp_path):
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, "training.hyperparameters.epochs=2"))
    lines = [line for line in result.stdout.splitlines() if " epoch " in line]
    assert len(lines) == 2
    assert all(re.fullmatch(EPOCH, line) for line in lines), lines
    assert "\x1b" not in result.stdout


def test_display_iterations_adds_a_line_every_so_many_updates(tmp_path):
    overrides = ("training.hyperparameters.epochs=2", "training.metrics.display_iterations=4")
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, *overrides))
    lines = [line for line in result.stdout.splitlines() if " update " in line]
    assert [re.search(r"epoch (\d), update (\d+/\d+)", line).groups() for line in lines] == [
        ("1", "4/10"), ("1", "8/10"), ("2", "4/10"), ("2", "8/10"),
    ]  # fmt: skip
    assert all(re.fullmatch(UPDATE, line) for line in lines), lines


def test_a_terminal_shows_bars_with_the_live_loss_error_and_rate(tmp_path):
    main, terminal = pty.openpty()
    overrides = into(tmp_path, *SHORT, "training.hyperparameters={epochs: 3, batch_size: 8}", "infrastructure.gpus=0")
    command = [sys.executable, "-m", "biotorch.cli", "run", str(QUICKSTART), *overrides]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env={**os.environ, "COLUMNS": "160"}) as process:
        os.close(terminal)
        shown = b""
        while chunk := _read(main):
            shown += chunk
    os.close(main)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 0, text
    assert re.search(r"epoch \d ━.*/158 .*loss [\d.]+, error [\d.]+ %, [\d,]+ examples/s", text)
    assert re.search(r"short +━.*3/3 .*\d:\d\d:\d\d .*validation error [\d.]+ %", text)
    assert re.search(r"[\r\n]warning: infrastructure", text)  # not behind a bar, which would then stay


@pytest.mark.parametrize("name", ["x[/y]", "lr[a]", "a:smile:b", "<b>"])
def test_names_of_users_are_printed_as_they_are(name, tmp_path):
    folder = tmp_path / name
    case = f"sweep={{kind: {{'{name}': {{model.mode.type: fa}}}}}}"
    shown = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, case, name=f"'{name}'"), "--jobs", "1")
    assert shown.exit_code == 0, shown.output
    for line in (f"table   {folder / 'table.md'}", f"page    {folder / 'page.html'}", f"results {folder}"):
        assert line in shown.stdout
    refused = invoke("run", tmp_path / f"{name}.yaml")
    assert f"no configuration file {tmp_path / f'{name}.yaml'}" in mistake(refused)
    assert f"'{name}' is not one of" in invoke("run", QUICKSTART, "--executor", name).stderr


def test_bars_show_names_of_users_as_they_are(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    study = read(QUICKSTART, into(tmp_path, *SHORT, name="'x[/y]'"))
    with Progress(console, 2) as progress:
        progress.start("", study.config)
    assert "x[/y]" in console.file.getvalue()


def _read(main):
    try:
        return os.read(main, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_a_diverging_run_ends_with_code_3_and_the_cure(tmp_path):
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, "training.optimizer={type: SGD, lr: 1e20}"))
    assert result.exit_code == 3
    assert result.stderr.startswith("error: the loss is ")
    assert "Lower training.optimizer.lr" in result.stderr


def test_a_warning_is_one_line_on_stderr(tmp_path):
    spec = "training.optimizer={type: Adam, lr: 0.001, momentum: 0.9}"
    grid = "sweep={experiment.seed: [0, 1]}"
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT, spec, "infrastructure.gpus=0", grid), "--jobs", "1")
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in lines)
    assert [("momentum" in line, "gpus" in line) for line in lines] == [(True, False), (False, True)], lines


def test_a_warning_of_a_configuration_that_is_refused_does_not_hide_the_error(tmp_path):
    text = mistake(invoke("run", QUICKSTART, "training.optimizer.momentum=0.9", "data.datset=1"))
    assert "data.datset: unknown key. Did you mean 'dataset'" in text


MISTAKES = [
    (["run", "nowhere.yaml"], "no configuration file nowhere.yaml"),
    (["run", "{tmp}"], "is a folder"),
    (["run", QUICKSTART, "nonsense"], "'nonsense' is not an override: write key.path=value"),
    (["run", QUICKSTART, "model.mode.type=faa"], "Did you mean 'fa'"),
    (["run", QUICKSTART, "training.optimizer.lr=[1"], "not valid YAML"),
    (["run", QUICKSTART, *SHORT, "model.architecture=resnet20"], "does not take the examples"),
    (["run", QUICKSTART, *SHORT, "model.pretrained=true"], "no pretrained weights"),
    (["run", QUICKSTART, *SHORT, "data.validation_size=100000"], "validation_size"),
    (["run", QUICKSTART, *SHORT, "data.target_size=8"], "does not take the examples"),
    (["run", QUICKSTART, *SHORT, "data.dataset=/nowhere.npz"], "/nowhere.npz"),
    (["run", QUICKSTART, *SHORT, "training.optimizer={type: Muon, lr: 0.1}"], "training.optimizer"),
    (["run", QUICKSTART, *SHORT, "model.loss_function={name: bce}"], "does not take the network's outputs"),
    (["run", QUICKSTART, *SHORT, "model.loss_function={name: cross_entropy, weight: [1, 2]}"], "weight"),
    (["run", QUICKSTART, *SHORT, "training.lr_scheduler={type: StepLR, step_size: 0}"], "training.lr_scheduler"),
    (["run", QUICKSTART, *SHORT, "training.lr_scheduler={type: OneCycleLR, max_lr: 1, total_steps: 3}"], "scheduler"),
    (["run", QUICKSTART, *SHORT, "model.checkpoint=nowhere.pth"], "no checkpoint nowhere.pth"),
    (["run", QUICKSTART, *SHORT, f"model.checkpoint={QUICKSTART}"], "damaged, is not a checkpoint"),
    (["run", QUICKSTART, *SHORT, "experiment.seed=99999999999999999999"], "experiment.seed"),
    (["run", QUICKSTART, *SHORT, "infrastructure.threads=1000000000000"], "infrastructure.threads"),
    (["run", QUICKSTART, *SHORT, "experiment.output_dir=/proc/nowhere"], "/proc/nowhere"),
    (["run"], "Missing argument"),
    (["run", QUICKSTART, "--overwrit"], "No such option"),
    (["rnu"], "No such command 'rnu'"),
    (["audit", QUICKSTART, "sweep={}", "model.architecture=resnet20"], "does not take the examples"),
    (["audit", QUICKSTART, "data.dataset=mnits"], "Did you mean 'mnist'"),
    (["evaluate", "{tmp}"], "it is not a run"),
    (["evaluate", "nowhere"], "nowhere"),
    (["evaluate", QUICKSTART], "damaged, is not a checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_a_mistake_ends_with_a_message_and_code_2(arguments, message, tmp_path):
    arguments = [str(each).replace("{tmp}", str(tmp_path)) for each in arguments]
    if arguments[0] == "run" and len(arguments) > 2:
        arguments[2:2] = into(tmp_path)
    assert message in mistake(invoke(*arguments))


def test_a_mistake_found_before_training_does_not_take_the_name_of_the_run(tmp_path):
    arguments = ["run", QUICKSTART, *into(tmp_path, *SHORT)]
    mistake(invoke(*arguments, "data.target_size=8"))
    corrected = invoke(*arguments)
    assert corrected.exit_code == 0, corrected.output


def test_debug_shows_the_traceback():
    result = invoke("run", "nowhere.yaml", "--debug")
    assert "Traceback" in result.stderr
    assert "ConfigError" in result.stderr
    assert result.exit_code == 2


def test_a_damaged_result_is_a_message_too(tmp_path):
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "results.json").write_text("{")
    assert "results.json is damaged" in mistake(invoke("run", QUICKSTART, *into(tmp_path, *SHORT)))


# benchmark.py --------------------------------------------------------------------------------------


def test_the_papers_command_is_the_same_as_run(tmp_path):
    command = [sys.executable, str(ROOT / "benchmark.py"), "--config", str(QUICKSTART), *into(tmp_path, *SHORT)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "short" / "results.json").is_file()


def test_the_papers_other_flag_is_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("benchmark").main([f"--config_file={QUICKSTART}", *into(tmp_path, *SHORT)])
    assert ended.value.code == 0
    assert (tmp_path / "short" / "results.json").is_file()


def test_the_papers_command_tells_a_mistake_like_run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("benchmark").main(["--config", str(CONFIGS[0]), "data.datset=1"])
    assert ended.value.code == 2
    assert "Did you mean 'dataset'" in capsys.readouterr().err
