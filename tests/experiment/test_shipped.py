"""Configurations that come with the package are found by name; files of the user come first."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import invoke, mistake
from config_cases import CONFIGS
from places import ROOT

from biotorch.experiment import read
from biotorch.experiment.shipped import shipped

NAMES = [path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in CONFIGS]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("written", ["paper/table1", "configs/paper/table1.yaml", "configs/paper/table1"])
def test_a_configuration_is_found_by_its_name_from_any_folder(written, elsewhere):
    assert read(written).points == read(ROOT / "configs" / "paper" / "table1.yaml").points


def test_a_file_beside_the_user_comes_first(elsewhere):
    (elsewhere / "configs" / "paper").mkdir(parents=True)
    mine = (ROOT / "configs" / "mlp.yaml").read_text()
    (elsewhere / "configs" / "paper" / "table1.yaml").write_text(mine.replace("name: mlp", "name: mine"))
    assert read("paper/table1").config.experiment.name == "mine"
    (elsewhere / "paper").mkdir()
    (elsewhere / "paper" / "table1").write_text(mine.replace("name: mlp", "name: nearer"))
    assert read("paper/table1").config.experiment.name == "nearer"


def test_a_folder_of_this_name_hides_no_configuration(elsewhere):
    (elsewhere / "paper" / "table1").mkdir(parents=True)
    assert read("paper/table1").config.experiment.name == "table1"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("paper/tabel1", "paper/table1"), ("quickstrat", "quickstart"), ("quickstart.yaml", "quickstart")],
)
def test_a_wrong_name_is_told_with_the_nearest(wrong, right, elsewhere):
    text = mistake(invoke("run", wrong))
    assert f"no configuration file {wrong}. Did you mean '{right}'" in text
    assert ("learned/cifar10, learned/mnist" in text) == ("." not in wrong)  # whoever writes a suffix means a file


def test_they_are_listed_with_a_sentence_and_printed(elsewhere):
    lines = invoke("configs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == NAMES == list(shipped())
    assert all(line.endswith((".", "?")) for line in lines)
    assert "Table 1 of the paper: LeNet on MNIST and Fashion-MNIST, SGD." in lines[NAMES.index("paper/table1")]
    assert invoke("configs", "paper/table1").stdout == (ROOT / "configs" / "paper" / "table1.yaml").read_text()
    assert "Did you mean 'mlp'" in mistake(invoke("configs", "mpl"))


@pytest.mark.slow
def test_the_papers_command_takes_a_name(elsewhere):
    command = [sys.executable, str(ROOT / "benchmark.py"), "--config", "mlp", "sweep={}", "--dry-run"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "1 of 1 points to run" in listed
