"""The distribution: its name, what lies in the wheel, and what must be true of the tree before a release."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from places import ROOT

import biotorch

CHECK = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))
problems, PLACEHOLDER = CHECK["problems"], CHECK["PLACEHOLDER"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = (".ci", ".github", "benchmarks", "configs", "docs", "examples", "src", "tests")


# The check of a release ----------------------------------------------------------------------------


def test_nothing_but_the_placeholder_forbids_a_release():
    found = problems(ROOT, f"v{biotorch.__version__}")
    assert not [each for each in found if PLACEHOLDER not in each]


@pytest.fixture
def tree(tmp_path):
    """A small tree that may be released as v1.2.3."""
    (tmp_path / "src" / "biotorch").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "src" / "biotorch" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.2.3 (2027-01-01)\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (tmp_path / "docs" / "index.md").write_text("https://github.com/somebody/biotorch\n")
    return tmp_path


def test_a_tree_in_order_may_be_released(tree):
    assert problems(tree, "v1.2.3") == []


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("docs/index.md", "somebody", "OWNER", "docs/index.md:1 holds the placeholder"),
        ("src/biotorch/__init__.py", "1.2.3", "1.2.4", "the tag is v1.2.3"),
        ("CHANGELOG.md", "1.2.3", "1.2.2", "CHANGELOG.md has no heading"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", "CITATION.cff has the version 1.2.2"),
    ],
)
def test_each_problem_forbids_the_release(file, old, new, problem, tree):
    (tree / file).write_text((tree / file).read_text().replace(old, new))
    assert any(problem in each for each in problems(tree, "v1.2.3"))


def test_a_version_of_the_development_is_not_released(tree):
    for path in tree.rglob("*.*"):
        path.write_text(path.read_text().replace("1.2.3", "1.2.3.dev0"))
    assert problems(tree, "v1.2.3.dev0") == ["1.2.3.dev0 is no version of a release: three numbers are needed"]


def test_the_workflow_of_a_release_begins_with_the_check():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert ".ci/check_release.py" in jobs["check"]["steps"][-1]["run"]
    assert (jobs["test"]["needs"], jobs["build"]["needs"], jobs["publish"]["needs"]) == ("check", "test", "build")
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["check"]["steps"]
    assert steps[-1]["run"] == ".ci/run"


# The distribution ----------------------------------------------------------------------------------


def test_the_wheel_has_the_package_and_its_configurations_and_nothing_else():
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    files = {each.distribution_path for each in builders.WheelBuilder(str(ROOT)).recurse_included_files()}
    configs = {f"biotorch/experiment/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*")}
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py*") if path.suffix != ".pyc"}
    assert configs | source | {"biotorch/py.typed", "biotorch/data/digits.npz"} <= files
    assert all(each.startswith("biotorch/") for each in files)


def test_no_text_installs_the_first_system_by_mistake():
    inner = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    wrong = re.compile(r"pip install[^\n#]*[ '\"]biotorch(?![-\w./]|==0\.0)|(?<!-feedback)\bbiotorch\[[a-z]+\]")
    told = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in [*ROOT.iterdir(), *inner]
        if path.is_file() and path.suffix in {".md", ".py", ".pyi", ".toml", ".yaml", ".yml", ".json", ".ipynb", ""}
        for found in wrong.finditer(path.read_text(errors="ignore"))
        if "uninstall" not in found[0]
    ]
    assert not told


def test_the_citation_has_what_the_format_requires_and_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["type"], cited["license"]) == ("software", PROJECT["license"])
    assert cited["authors"] == PROJECT["authors"]
    assert cited["repository-code"] == PROJECT["urls"]["Source"]
    [paper] = cited["references"]
    assert [each["family-names"] for each in paper["authors"]] == ["Jiménez Sanfiz", "Akrout"]


# Beside the first system ---------------------------------------------------------------------------


def imported(folder: Path) -> str:
    """What `import biotorch` writes to stderr where the distributions in a folder are installed."""
    places = os.pathsep.join([str(folder), str(Path(biotorch.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": places}
    program = [sys.executable, "-c", "import biotorch; assert biotorch.__version__"]
    return subprocess.run(program, capture_output=True, text=True, check=True, env=environment).stderr


@pytest.mark.parametrize(
    ("name", "version", "warns"),
    [("biotorch", "0.0.16", True), ("biotorch", "0.1.0.dev0", False), ("biotorch_feedback", "0.0.1", False)],
)
def test_the_first_system_beside_ours_is_told_once_with_the_cure(name, version, warns, tmp_path):
    (tmp_path / f"{name}-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata)
    told = imported(tmp_path)
    assert told.count("RuntimeWarning") == warns
    if warns:
        assert f"biotorch {version}, the first system of 2021, is installed in {tmp_path}" in told
        assert "pip uninstall -y biotorch biotorch-feedback" in told


def test_a_command_over_files_of_the_first_system_ends_with_the_cure(tmp_path):
    """The first system was installed later: its empty `__init__.py` has replaced ours."""
    source = Path(biotorch.__file__).parent
    (tmp_path / "biotorch").mkdir()
    (tmp_path / "biotorch" / "__init__.py").touch()
    for path in source.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (tmp_path / "biotorch" / path.name).symlink_to(path)
    (tmp_path / "biotorch-0.0.16.dist-info").mkdir()
    (tmp_path / "biotorch-0.0.16.dist-info" / "METADATA").write_text("Name: biotorch\nVersion: 0.0.16\n")
    program = [sys.executable, "-m", "biotorch.cli", "rules"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(program, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: biotorch 0.0.16, the first system of 2021")
