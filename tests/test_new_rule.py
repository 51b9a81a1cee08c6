"""docs/new-rule.md, executed: the rule, convert, a configuration from the command line, the suite."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import biotorch
from biotorch.experiment import ConfigError, read
from biotorch.experiment.importing import OwnModuleError, import_all
from biotorch.rules import registry

TEXT = (Path(__file__).parents[1] / "docs" / "new-rule.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, with the files of the page; what they register disappears with the test."""
    for block in BLOCKS:
        named = re.match(r"# (\S+)\n", block)
        (tmp_path / (named[1] if named else "script.py")).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(registry._REGISTRY)
    yield tmp_path
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
    sys.modules.pop("my_rules", None)


def command(folder, *arguments) -> subprocess.CompletedProcess:
    """`biotorch` in a process of its own, which knows of no rule but the package's."""
    call = [sys.executable, "-m", "biotorch.cli", *map(str, arguments)]
    return subprocess.run(call, check=False, cwd=folder, capture_output=True, text=True, timeout=100)


def test_the_rule_has_less_than_forty_lines():
    rule = next(block for block in BLOCKS if block.startswith("# my_rules.py"))
    assert len(rule.splitlines()) < 40
    assert len(BLOCKS) == 4


def test_convert_takes_it(folder):
    names: dict = {}
    exec((folder / "script.py").read_text(), names)
    assert names["model"][0].rule.p == 0.2
    assert "flipped" in biotorch.rules.available()


def test_a_configuration_takes_it_in_every_process(folder):
    found = command(folder, "run", "study.yaml", "--jobs", "2")
    assert found.returncode == 0, found.stderr
    assert len(list((folder / "runs" / "flipped").glob("*/results.json"))) == 4
    run = next((folder / "runs" / "flipped").glob("*flipped*xavier*"))
    assert command(folder, "--import", "my_rules", "evaluate", run).returncode == 0
    unknown = command(folder, "evaluate", run)
    assert unknown.returncode == 2
    assert "--import" in unknown.stderr


def test_the_command_lists_it(folder):
    assert "flipped" in command(folder, "--import", "my_rules.py", "rules").stdout
    assert "flipped" not in command(folder, "rules").stdout


@pytest.mark.slow
def test_the_suite_passes_outside_this_repository(folder):
    suite = [sys.executable, "-m", "pytest", "-q", "test_my_rules.py"]
    found = subprocess.run(suite, check=False, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert f"{len(biotorch.testing.CHECKS)} passed" in found.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("imports: [not_there]", "not_there: No module named 'not_there'"),
        ("imports: [not_there.py]", "no such file"),
        ("imports: [broken.py]", r"imports: broken\.py: ZeroDivisionError"),
        ("imports: [my rules]", "names of modules"),
        ("imports: my_rules", "list"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_message_with_its_line(folder, text, told):
    (folder / "broken.py").write_text("1 / 0\n")
    study = (folder / "study.yaml").read_text().replace("imports: [my_rules]", text)
    (folder / "study.yaml").write_text(study)
    with pytest.raises(ConfigError, match=rf"study\.yaml:2: .*{told}"):
        read(folder / "study.yaml")


def test_a_file_is_imported_once_and_two_of_one_name_are_told(folder):
    import_all(["my_rules.py", "my_rules.py", "my_rules"])
    (folder / "other").mkdir()
    (folder / "other" / "my_rules.py").write_text("")
    with pytest.raises(OwnModuleError, match="another module is called my_rules"):
        import_all(["other/my_rules.py"])
