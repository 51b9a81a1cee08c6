"""The structure of the source: no circles, small files, one tree of exceptions, private names where they belong."""

import ast
import builtins
import graphlib
import inspect
import re
from pathlib import Path

import pytest

import biotorch
from biotorch import errors

SOURCE = Path(biotorch.__file__).parent
FILES = {
    ".".join(("biotorch", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(name):
    """The modules of the package that a module imports from, also inside functions and for types alone."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("biotorch"):
            yield from (home(node.module, alias.name) for alias in node.names)


def home(module, name):
    """Where `from module import name` finds the name: through the faces of packages, to the file."""
    if f"{module}.{name}" in FILES and FILES[f"{module}.{name}"].stem != "__init__":
        return f"{module}.{name}"
    path = FILES[module]
    if path.stem == "__init__":
        stub = path.with_suffix(".pyi")
        for node in ast.parse((stub if stub.exists() else path).read_text()).body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                return home(node.module, name) if node.module != module else f"{module}.{name}"
    return module


def require_no_circle(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_file_imports_itself_through_others():
    require_no_circle({name: set(imports(name)) - {name} for name in FILES if FILES[name].stem != "__init__"})


def test_packages_stand_above_what_they_import():
    def room(name):
        return name.split(".")[1] if name.count(".") else name

    design = (SOURCE.parents[1] / "docs" / "design.md").read_text()
    order = re.findall(r"`(\w+)`", re.search(r"`kernel` <(?:.|\n)*?`cli`", design)[0])
    assert {each.parent.name for each in SOURCE.glob("*/__init__.py")} - {"testing"} <= set(order)
    for name, path in FILES.items():
        if path.stem != "__init__" and room(name) in order:
            above = [each for each in imports(name) if room(each) in order[order.index(room(name)) + 1 :]]
            assert not above, f"{name} imports {above}"


def test_no_file_is_long_and_they_are_few():
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > 300}
    assert not long
    rules = [name for name in FILES if name.startswith("biotorch.rules.")]  # there may be any number of them
    assert len(FILES) - len(rules) <= 210


def test_every_exception_is_in_one_tree_and_one_file():
    own = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    names = own.keys() | {name for name in dir(builtins) if name.endswith(("Error", "Exception", "Warning"))}
    elsewhere = [
        f"{name}.{node.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and names & {each.id for each in node.bases if isinstance(each, ast.Name)}
    ]
    assert not [each for each in elsewhere if not each.startswith("biotorch.errors.")]
    for name, kind in own.items():
        assert issubclass(kind, errors.BiotorchError | UserWarning | errors.Stopped)
        assert re.search(rf"\b{name}\b", errors.__doc__)


def test_no_file_takes_a_private_name_of_another():
    taken = [
        f"{name}: {node.module}.{alias.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("biotorch.")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not taken
