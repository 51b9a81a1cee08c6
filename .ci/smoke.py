#!/usr/bin/env python3
"""Smoke test of the distribution: build sdist and wheel, install the wheel in a clean environment, use it there.

    .venv/bin/python .ci/smoke.py

The wheel is built from the sdist. The environment gets the required dependencies and no extra. torch, torchvision and
what these two require are linked from the environment of this interpreter, since they take gigabytes; the others are
installed from PyPI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ("torch", "torchvision")

#: Program that runs in the clean environment: every public name is there, and a missing extra says what to install.
PROGRAM = """
import sys
import biotorch
assert biotorch.__file__.startswith(sys.prefix), biotorch.__file__
for face in (biotorch, biotorch.training, biotorch.experiment):
    for name in dir(face):
        getattr(face, name)
try:
    biotorch.models.build("timm/resnet18")
except biotorch.errors.MissingPackageError as error:
    assert "pip install 'biotorch-feedback[timm]'" in str(error), error
else:
    raise AssertionError("timm is installed")
"""


def main(folder: Path) -> None:
    """Build, install and use the distribution in an empty folder."""
    wheel = build(folder)
    began = time.monotonic()
    python = environment(folder / "clean", wheel)
    print(f"installed in {time.monotonic() - began:.0f} s")
    use(python, folder / "empty", version=wheel.name.split("-")[1])


def build(folder: Path) -> Path:
    """Build the sdist from the clone, and the wheel from the sdist."""
    hatchling = (sys.executable, "-m", "hatchling", "build", "-d", str(folder / "dist"), "-t")
    run(*hatchling, "sdist", cwd=ROOT)
    [sdist] = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    run(*hatchling, "wheel", cwd=folder / sdist.name.removesuffix(".tar.gz"))
    [wheel] = (folder / "dist").glob("*.whl")
    for path in (sdist, wheel):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return wheel


def environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with the wheel and its required dependencies, and return its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    shared = folder / "shared"
    shared.mkdir()
    for distribution in with_requirements(SHARED):
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (shared / top).exists():
                (shared / top).symlink_to(Path(str(distribution.locate_file(top))))
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{shared}\n")
    pip = (
        ("uv", "pip", "{}", "--python", str(python))
        if shutil.which("uv")
        else (sys.executable, "-m", "pip", "--python", str(python), "{}", "--quiet")
    )
    installer = [part.format("install") for part in pip]
    run(
        *installer,
        *(() if "uv" in installer else ("--no-compile",)),
        "-c",
        str(ROOT / "constraints.txt"),
        str(wheel),
        cwd=folder,
    )
    run(*(part.format("check") for part in pip), cwd=folder)
    return python


def with_requirements(names: tuple[str, ...]) -> list[metadata.Distribution]:
    """Installed distributions of these names, with all that they require without an extra."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub("[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # required on another platform
            continue
        needed = [each for each in found[name].requires or [] if "extra ==" not in each]
        waiting += [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in needed]
    return list(found.values())


def use(python: Path, folder: Path, version: str) -> None:
    """Run commands of the installed package in an empty folder: help, a dry run, a training, an audit."""
    folder.mkdir()
    biotorch = str(python.with_name("biotorch"))
    one = ("sweep.experiment.seed=[0]", "training.hyperparameters.epochs=1")
    assert run(biotorch, "--version", cwd=folder).strip() == version
    assert "Exit codes" in run(biotorch, "--help", cwd=folder)
    names = run(biotorch, "configs", cwd=folder).splitlines()
    assert len(names) == len(list((ROOT / "configs").rglob("*.yaml"))), names
    digits = ("data.dataset=digits", *one)
    planned = run(biotorch, "run", "paper/table1", *digits, "--dry-run", "--jobs", "1", cwd=folder)
    assert "6 of 6 points to run" in planned, planned
    run(biotorch, "run", "quickstart", *one, "model.mode.type=fa", "--jobs", "1", cwd=folder)
    assert (folder / "runs" / "quickstart" / "page.html").stat().st_size > 100_000
    audited = run(biotorch, "audit", "quickstart", *one, "model.mode.type=fa", cwd=folder)
    assert "nothing" in audited, audited
    run(str(python), "-c", PROGRAM, cwd=folder)


def run(*command: str, cwd: Path) -> str:
    """Run a command without the variables that would lead out of its environment, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BIOTORCH", "VIRTUAL"))}
    began = time.monotonic()
    ran = subprocess.run(command, cwd=cwd, env=kept, stdout=subprocess.PIPE, text=True, check=False)
    shown = " ".join([Path(command[0]).name, *command[1:3]]).partition("\n")[0]
    print(f"{time.monotonic() - began:5.1f} s  {shown}", flush=True)
    if ran.returncode:
        sys.exit(f"{ran.stdout}\nexit code {ran.returncode}: {' '.join(command)}")
    return ran.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="biotorch-smoke-") as temporary:
        main(Path(temporary))
    print("the distribution builds, installs and works")
