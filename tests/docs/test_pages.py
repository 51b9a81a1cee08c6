"""Every page of the documentation does what it says: its blocks run in their order, in an empty folder."""

import importlib
import types
import warnings

import matplotlib as mpl
import pages
import pytest
import registries
import torch
import yaml
from pages import DOCS
from places import ROOT


def page_of(path):
    marks = [pytest.mark.slow, pytest.mark.timeout(900)] if pages.is_slow(path) else []
    return pytest.param(path, id=str(path.relative_to(ROOT)), marks=marks)


PAGES = [page_of(path) for path in pages.every_page() if any(block.runs for block in pages.blocks(path))]


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    names = types.ModuleType("__main__").__dict__
    with registries.as_before(folder), warnings.catch_warnings():
        warnings.simplefilter("default")
        for block in pages.blocks(page):
            if block.not_run:
                continue
            where = f"{page.relative_to(ROOT)}:{block.line}"
            if block.title:
                path = folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
                importlib.invalidate_caches()
            elif block.language == "sh":
                found = pages.shell(block.text, folder)
                assert found.returncode == 0, f"{where}\n{found.stdout}\n{found.stderr}"
            elif block.language == "python":  # with the page's own lines in a traceback
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("page", pages.every_page(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_known_kind(page):
    """So that no block is left out by a slip, and what is only shown can be read."""
    for block in pages.blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.title or block.language in (*pages.RUN, *pages.SHOWN), f"{where}: {block.language!r}"
        assert not (block.not_run and block.language not in pages.RUN), (
            f"{where}: a block that never runs needs no mark"
        )
        if block.language == "yaml":
            assert yaml.safe_load(block.text), where


def test_the_pages_are_in_the_navigation_and_no_others():
    def files(entries):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from files(value) if isinstance(value, list) else [value]

    listed = list(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
