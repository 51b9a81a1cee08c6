"""docs/new-rule.md, executed: the rule, convert, a configuration from the command line, the suite."""

import contextlib
import re
import subprocess
import sys
from typing import ClassVar

import pytest
from commands import invoke
from places import ROOT
from torch import nn
from typer.testing import Result

import biotorch
from biotorch.errors import OwnModuleError
from biotorch.experiment import ConfigError, read
from biotorch.experiment.importing import import_all
from biotorch.rules import registry

TEXT = (ROOT / "docs" / "new-rule.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, with the files of the page; what they register disappears with the test."""
    for block in BLOCKS:
        named = re.match(r"# (\S+)\n", block)
        (tmp_path / (named[1] if named else "script.py")).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with unknown_rules():
        yield tmp_path


@contextlib.contextmanager
def unknown_rules():
    """Forgets afterwards whatever is registered within."""
    before = dict(registry._REGISTRY)
    try:
        yield
    finally:
        registry._REGISTRY.clear()
        registry._REGISTRY.update(before)
        sys.modules.pop("my_rules", None)


def command(*arguments) -> Result:
    """`biotorch`, which knows of no rule but the package's and of those that it imports itself."""
    assert "flipped" not in biotorch.rules.available()
    with unknown_rules():
        return invoke(*arguments)


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
    found = command("run", "study.yaml", "--jobs", "2")
    assert found.exit_code == 0, found.stderr
    assert len(list((folder / "runs" / "flipped").glob("*/results.json"))) == 4
    run = next((folder / "runs" / "flipped").glob("*flipped*xavier*"))
    assert command("--import", "my_rules", "evaluate", run).exit_code == 0
    unknown = command("evaluate", run)
    assert unknown.exit_code == 2
    assert "--import" in unknown.stderr


def test_the_command_lists_it(folder):
    assert "flipped" in command("--import", "my_rules.py", "rules").stdout
    assert "flipped" not in command("rules").stdout


def test_a_layer_s_own_rule_is_asked_for_too(folder):
    """As the mode's is: `evaluate` names the rule and the cure."""
    study = (folder / "study.yaml").read_text()
    head = study[: study.index("sweep:")].replace(
        "architecture: mlp", "architecture: mlp, mode: {type: fa, layers: {'hidden.1': flipped}}"
    )
    (folder / "layers.yaml").write_text(head)
    found = command("run", "layers.yaml")
    assert found.exit_code == 0, found.stderr
    unknown = command("evaluate", folder / "runs" / "flipped")
    assert unknown.exit_code == 2
    assert "uses a rule of your own, 'flipped'" in " ".join(unknown.stderr.split())


def test_a_rule_that_nothing_imports_is_told_with_the_cure(folder):
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text().replace("imports: [my_rules]", ""))
    with pytest.raises(ConfigError, match=r"unknown rule 'flipped'.*list its module under `imports:`"):
        read(folder / "study.yaml")


def test_a_wrong_value_is_told_with_the_option(folder):
    import_all(["my_rules.py"])
    with pytest.raises(ValueError, match=r"rule 'flipped' does not take p='abc'"):
        biotorch.rules.make("flipped", p="abc")


REFUSED = {
    "options without a dataclass": (
        "class New(rules.get('fa')):\n    q: float = 1.0",
        TypeError,
        r"has options \(q\) but is not a dataclass",
    ),
    "a class variable is no option": ("class New(rules.get('fa')):\n    q: ClassVar[float] = 1.0", None, ""),
    "no rule": ("class New:\n    pass", TypeError, "must derive from FeedbackRule or DirectRule"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_rule_is_refused_at_once(folder, case):
    body, kind, told = REFUSED[case]
    names = {"ClassVar": ClassVar, "rules": biotorch.rules}
    text = f"@rules.register('new', transports='nothing')\n{body}\n"
    if kind is None:
        exec(text, names)
        return
    with pytest.raises(kind, match=told):
        exec(text, names)


@pytest.mark.parametrize(
    ("names", "transports", "told"),
    [
        ((), "nothing", "a rule needs a name"),
        (("new",), "nothin", "unknown transports 'nothin'"),
        (("bp",), "nothing", r"'bp' is already registered, by module biotorch\.rules\.backpropagation"),
    ],
)
def test_a_wrong_registration_is_refused(folder, names, transports, told):
    with pytest.raises(ValueError, match=told):
        biotorch.rules.register(*names, transports=transports)(biotorch.rules.get("fa"))


def test_what_fails_within_convert_names_what_is_missing(folder):
    class Mute(biotorch.rules.FeedbackRule):
        pass

    class Learned(biotorch.rules.get("backpropagation")):
        def after_update(self, update):
            update.feedback.zero_()

    biotorch.rules.register("mute", transports="nothing")(Mute)
    biotorch.rules.register("learned", transports="nothing")(Learned)
    for name, told in (
        ("mute", r"Mute must define feedback\(weight, state\)"),
        ("learned", "initial_feedback returns None"),
    ):
        with pytest.raises(biotorch.ConversionError, match=told):
            biotorch.convert(nn.Linear(3, 2), name)


def test_the_suite_runs_from_a_script(folder):
    """Without pytest and without a guard around it."""
    (folder / "check.py").write_text(
        "import my_rules\nfrom biotorch.testing import check_processes\n"
        "check_processes('flipped', p=0.2)\nprint('passed')\n"
    )
    call = [sys.executable, "check.py"]
    found = subprocess.run(call, check=False, cwd=folder, capture_output=True, text=True, timeout=100)
    assert (found.returncode, found.stdout) == (0, "passed\n"), found.stderr


def test_a_rule_of_the_script_itself_is_told(folder):
    own = (folder / "my_rules.py").read_text()
    (folder / "check.py").write_text(
        own + "\nfrom biotorch.testing import check_processes\ncheck_processes('flipped')\n"
    )
    call = [sys.executable, "check.py"]
    found = subprocess.run(call, check=False, cwd=folder, capture_output=True, text=True, timeout=100)
    assert "move it into a module of its own" in found.stderr


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
        ("imports: [broken.py]", r"imports: broken\.py: ZeroDivisionError at .*broken\.py:1"),
        ("imports: [needy]", r"imports: needy: ModuleNotFoundError at .*needy\.py:2: No module named 'numpyy'"),
        ("imports: [my rules]", "names of modules"),
        ("imports: my_rules", "list"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_message_with_its_line(folder, text, told):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needy.py").write_text("\nimport numpyy\n")
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
