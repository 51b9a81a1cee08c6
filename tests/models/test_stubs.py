"""Type stubs: current, in the wheel's package, and understood by a type checker."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from biotorch import models, rules
from biotorch.models import stubs


def test_the_stubs_are_current():
    written = {str(path.relative_to(stubs.PACKAGE)): path.read_text() for path in stubs.PACKAGE.glob("[lm]*/*.pyi")}
    stale = sorted(name for name, content in stubs.render().items() if written.get(name) != content)
    assert not stale, f"python -m biotorch.models.stubs writes {', '.join(stale)}"
    assert written.keys() == stubs.render().keys()


@pytest.mark.parametrize("rule", rules.available())
def test_every_rule_has_its_module(rule):
    module = importlib.import_module(f"biotorch.models.{rule}")
    assert module is getattr(models, rule)
    assert dir(module) == module.__all__ == models.available()
    assert set(models.available()) <= module.__dict__.keys()  # torchvision's idiom: models.__dict__[name]()
    constructor = module.__dict__["resnet20"]
    assert (constructor.__name__, constructor.__module__) == ("resnet20", module.__name__)


def test_the_stubs_have_the_signature_of_the_constructors():
    namespace: dict[str, object] = {}
    exec(stubs.render()["models/_constructors.pyi"], namespace)
    fa = importlib.import_module("biotorch.models.fa")
    assert {name for name, value in namespace.items() if inspect.isfunction(value)} == set(models.available())
    for name in ("resnet18", "mlp"):
        stub, real = (inspect.signature(f).parameters for f in (namespace[name], getattr(fa, name)))
        leading = [key for key in real if key != "arguments"]
        assert list(stub)[: len(leading)] == leading
        assert all(stub[key].default == real[key].default for key in leading)
    own = ["in_features", "width", "depth", "activation", "dropout", "batch_norm", "layer_norm"]
    assert list(inspect.signature(namespace["mlp"]).parameters)[4:] == own


@pytest.fixture(scope="module")
def wheel_stubs():
    """What hatch puts into the wheel."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    files = builders.WheelBuilder(str(ROOT)).recurse_included_files()
    return {
        str(Path(file.distribution_path).relative_to("biotorch"))
        for file in files
        if "biotorch" in file.distribution_path
    }


def test_the_wheel_contains_them(wheel_stubs):
    assert set(stubs.render()) | {"py.typed"} <= wheel_stubs


@pytest.mark.slow
def test_a_type_checker_knows_the_constructors(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed: pip install 'biotorch-feedback[dev]'")
    program = tmp_path / "program.py"
    program.write_text(
        "from biotorch.models.fa import mlp, resnet18\n"
        "reveal_type(resnet18)\n"
        "mlp(width=[3, 4])\n"
        "mlp(widht=3)\n"
        "from biotorch.models.fa import resnet17\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", str(ROOT / "pyproject.toml")]
    answer = subprocess.run([*command, str(program)], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    told = [line for line in answer.splitlines() if program.name in line and "defined in" not in line]
    assert len(told) == 3, answer
    assert "pretrained: bool" in told[0]
    assert "num_classes: int | None" in told[0]
    assert 'Unexpected keyword argument "widht"' in told[1]
    assert 'has no attribute "resnet17"' in told[2]
