"""The site is built without a warning, and asks the network for nothing."""

import re
import subprocess
import sys

import pytest
from places import ROOT

pytest.importorskip("mkdocs", reason="the site needs the extra docs")


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(tmp_path):
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    found = subprocess.run(call, check=False, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    pages = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    sources = ROOT.joinpath("docs").rglob("*.md")
    assert {path.relative_to(ROOT / "docs").with_suffix(".html") for path in sources} <= pages.keys()
    loaded = (
        r'<(?:script|img|iframe|source)\b[^>]*\ssrc="?https?:|<link\b[^>]*\brel="?(?:stylesheet|preconnect)[^>]*https?:'
    )
    assert [path for path, text in pages.items() if re.search(loaded, text)] == []
    assert all("<noscript>" in text for text in pages.values())
