"""What an import loads: nothing heavy before it is used. Modules are counted, no time is measured."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import biotorch

HEAVY = {
    "torch",
    "torchvision",
    "torch._dynamo",
    "lightning_fabric",
    "pandas",
    "matplotlib",
    "plotly",
    "tensorboard",
    "jinja2",
}
COMMAND = "from biotorch.cli.app import app; app(sys.argv[1:], standalone_mode=False)"


def loaded(program, *arguments):
    """The heavy modules of a process that has run `program`."""
    code = f"import sys\n{program}\nprint('\\n', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return HEAVY & set(ran.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_and_version_import_no_torch(arguments):
    program = COMMAND.replace("; ", "\ntry: ") + "\nexcept SystemExit: pass"
    assert loaded(program, *arguments) == set()


@pytest.mark.parametrize("command", ["rules", "schema", "models"])
def test_lists_import_torch_alone(command):
    assert loaded(COMMAND, command) == {"torch"}


@pytest.mark.parametrize("command", ["run", "search", "audit"])
def test_a_configuration_with_a_mistake_is_refused_with_torch_alone(command, tmp_path):
    (tmp_path / "bad.yaml").write_text("data: {dataset: digits}\nmodel: {architecture: mpl}\n")
    program = COMMAND.replace("; ", "\ntry: ") + "\nexcept SystemExit as error: assert error.code == 2"
    assert loaded(program, command, str(tmp_path / "bad.yaml")) == {"torch"}


def test_the_package_imports_nothing_until_it_is_used():
    assert loaded("import biotorch, biotorch.cli, biotorch.training, biotorch.experiment") == set()


@pytest.mark.parametrize(
    "use",
    [
        "biotorch.convert(torch.nn.Sequential(torch.nn.Linear(2, 2)), 'kp')(torch.ones(1, 2)).sum().backward()",
        "biotorch.layers.kp.Linear(2, 2), biotorch.models.build('mlp', in_features=4)",
        "biotorch.data.DataConfig(dataset='mnist'), biotorch.robustness.PGD, biotorch.rules.available()",
        "biotorch.audit(biotorch.convert(biotorch.models.build('le_net_mnist'), 'fa'), torch.ones(2, 1, 32, 32))",
    ],
)
def test_training_and_proving_take_torch_alone(use):
    assert loaded(f"import biotorch, torch\n{use}") == {"torch"}


def test_every_public_name_is_there():
    program = (
        "import biotorch\n"
        "for face in (biotorch, biotorch.training, biotorch.experiment):\n"
        "    for name in dir(face): getattr(face, name)"
    )
    assert "torch" in loaded(program)


def test_the_face_is_public_names_alone():
    names = subprocess.run(
        [sys.executable, "-c", "import biotorch, torch.nn; biotorch.convert; print(*dir(biotorch))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"convert", "audit", "rules", "layers", "BioModule"} <= set(names)
    assert not [name for name in names if name.startswith("_") or name in ("nn", "torch", "Any", "importlib", "face")]


def test_threads_may_use_a_name_first_at_once():
    """torch itself cannot be imported by two threads at once: the process would abort."""
    program = """
import threading, biotorch
barrier, found = threading.Barrier(7), []
def use():
    barrier.wait()
    found.append(biotorch.convert)
threads = [threading.Thread(target=use) for _ in range(7)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert len(found) == 7 and len(set(found)) == 1, found
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_it_imports_from_a_zip_file(tmp_path):
    source = Path(biotorch.__file__).parent
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        for path in [*source.rglob("*.py"), *source.rglob("*.pyi")]:
            packed.write(path, path.relative_to(source.parent))
    program = "import biotorch; assert 'packed.zip' in biotorch.__file__; biotorch.convert; biotorch.models.fa.mlp"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packed.zip")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
