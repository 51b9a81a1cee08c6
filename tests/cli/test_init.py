"""`biotorch init`: the file that it writes runs as it is, and it asks or says what it lacks."""

from __future__ import annotations

import re

import pytest
from commands import invoke, mistake
from PIL import Image
from typer.testing import CliRunner

from biotorch.cli import init
from biotorch.cli.app import app
from biotorch.data import DataConfig
from biotorch.experiment import documents, read
from biotorch.experiment.draft import Draft, name_for, network_for
from biotorch.experiment.reading import validate


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_written_file_runs(here):
    written = invoke("init", "--data", "digits", "--network", "mlp", "--rules", "Feedback Alignment", "--epochs", "1")
    assert written.exit_code == 0, written.output
    assert written.stdout.splitlines() == ["written digits.yaml", "next    biotorch run digits.yaml"]
    ran = invoke("run", "digits.yaml")
    assert ran.exit_code == 0, ran.output
    assert (here / "runs" / "digits" / "results.json").is_file()


DRAFTS = {
    "one rule": Draft("one", "digits", "le_net_mnist", ["dfa"]),
    "several rules": Draft("a, b", "cifar10", "resnet20", ["backpropagation", "kp"], epochs=7),
    "image files": Draft("files", "folder:my: images", "resnet18", ["fa"]),
    "table": Draft("table", "table:x.csv", "mlp", ["fa", "usf"], target=["price, net", "yes"], ignore=["id"]),
    "text": Draft("text", "text:a.txt", "char_transformer", ["backpropagation", "fa"]),
    "features": Draft("features", "a.npz", "lstm", ["fa"], imports=["json"]),
}


def checked(text):
    tree, places, problems = documents.parse(text, "draft")
    return validate(tree, "draft", places=places, problems=problems)


@pytest.mark.parametrize("case", DRAFTS)
def test_every_draft_is_valid_and_so_is_each_line_that_is_a_comment(case):
    draft = DRAFTS[case]
    text = draft.text("draft.yaml")
    study = checked(text)
    assert {each.model.mode.type for each in study.points.values()} == set(draft.rules)
    config = study.config
    assert (config.experiment.name, config.data.dataset, config.model.architecture) == (
        draft.name, draft.dataset, draft.architecture,
    )  # fmt: skip
    assert draft.epochs in (None, config.training.hyperparameters.epochs)
    assert list(config.data.target or []) == list(draft.target)
    offered = re.findall(r"^( +)# (\w+: .*)$", text, flags=re.MULTILINE)
    assert offered
    for indent, line in offered:
        checked(text.replace(f"{indent}# {line}", f"{indent}{line}"))


@pytest.mark.parametrize(
    ("dataset", "name", "network"),
    [
        ("fashion_mnist", "fashion_mnist", "le_net_mnist"),
        ("table:/data/my houses.csv.gz", "my_houses", "mlp"),
        ("hf:user/set@main", "set", "resnet18"),
        ("text:..", "experiment", "char_transformer"),
        ("steps.npz", "steps", "mlp"),
    ],
)
def test_names_and_networks_follow_from_the_data(dataset, name, network):
    assert (name_for(dataset), network_for(dataset)) == (name, network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing: without a terminal"),
        (["--data", "mnits"], "--data: unknown data set 'mnits'. Did you mean 'mnist'"),
        (["--data", "digits", "--network", "reznet18"], "--network: unknown architecture 'reznet18'"),
        (["--data", "digits", "--rules", "fa,dfb"], "--rules: unknown rule 'dfb'"),
        (["--data", "digits", "--network", "resnet20"], "does not take the examples of data.dataset 'digits'"),
        (["--data", "table:nowhere.csv"], "'nowhere.csv' of data.dataset was not found"),
        (["--data", "table:own.csv"], "--target is missing: name the column to predict, one of a, b"),
        (["--data", "table:own.csv", "--target", "c"], "--target: unknown column 'c'"),
        (["own.csv", "--data", "digits"], "a name that ends in .yaml is needed"),
        (["no/own.yaml", "--data", "digits"], "there is no folder no for own.yaml"),
    ],
)
def test_a_mistake_writes_nothing(arguments, message, here):
    (here / "own.csv").write_text("a,b\n1,2\n")
    assert message in mistake(invoke("init", *arguments))
    assert [path.name for path in here.iterdir()] == ["own.csv"]


def test_a_file_is_never_overwritten(here):
    (here / "digits.yaml").write_text("mine")
    for arguments in (["digits.yaml"], []):
        told = mistake(invoke("init", *arguments, "--data", "digits"))
        assert "digits.yaml exists already, and is not overwritten: choose another name" in told
    assert (here / "digits.yaml").read_text() == "mine"


def test_a_table_and_a_folder_of_images_are_tried(here):
    (here / "own.csv").write_text("a,b,c\n" + "".join(f"{i},{i % 7},{i % 3}\n" for i in range(60)))
    arguments = ("init", "--data", "table:own.csv", "--target", "c")
    assert "'a' numbers the rows" in mistake(invoke(*arguments))
    written = invoke(*arguments, "--ignore", "a")
    assert written.exit_code == 0, written.output
    assert read("own.yaml").config.data.target == "c"
    for number in range(10):
        path = here / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
    written = invoke("init", "--data", "folder:photos", "--network", "mlp")
    assert written.exit_code == 0, written.output
    assert read("photos.yaml").config.data.target_size == 224


def test_data_that_a_run_would_download_are_not_needed(here, monkeypatch):
    monkeypatch.setenv("BIOTORCH_DATA", str(here / "empty"))
    written = invoke("init", "--data", "mnist")
    assert written.exit_code == 0, written.output
    assert f"data    mnist is not in {here / 'empty'} yet: the first run downloads it" in written.stdout
    assert not DataConfig(dataset="mnist").folder.exists()


def test_on_a_terminal_it_asks_and_asks_again(here, monkeypatch):
    monkeypatch.setattr(init, "on_terminal", lambda: True)
    (here / "own.csv").write_text("a,b\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(60)))
    answers = ["tabel:own.csv", "table:own.csv", "z", "b", "", "", "FA, dfb", "FA", "taken.txt", ""]
    asked = CliRunner().invoke(app, ["init"], input="\n".join(answers) + "\n")
    assert asked.exit_code == 0, asked.output
    for told in (
        "unknown data set 'tabel:own.csv'",
        "Column to predict (a, b)",
        "unknown column 'z'",
        "[mlp]",
        "'dfb'",
    ):
        assert told in asked.output
    config = read("own.yaml").config
    assert (config.data.target, config.model.architecture, config.model.mode.type) == ("b", "mlp", "fa")


def test_the_end_of_the_input_at_a_question_stops_it(here, monkeypatch):
    monkeypatch.setattr(init, "on_terminal", lambda: True)
    stopped = CliRunner().invoke(app, ["init"], input="digits\n")
    assert stopped.exit_code == 130
    assert "stopped by SIGINT" in stopped.stderr
    assert not list(here.iterdir())
