"""Adapts the pages to the site: links that lead out of docs/ name the file of the repository instead."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_FENCED = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replace each link to a file outside of docs/ by its text and path.

    With a `repo_url` in mkdocs.yml they become links to the repository.
    """
    home = posixpath.dirname(page.file.src_uri)

    def replaced(link: re.Match[str]) -> str:
        target = link["target"]
        if ":" in target or target.startswith("/"):
            return link[0]
        path = posixpath.normpath(posixpath.join("docs", home, target))
        if path.startswith("docs/"):
            return link[0]
        if config.repo_url:
            return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{link['anchor'] or ''})"
        text = link["text"].strip("`")
        return f"`{path}`" if text == path else f"{link['text']} (`{path}`)"

    parts = _FENCED.split(markdown)
    return "".join(part if index % 2 else _LINK.sub(replaced, part) for index, part in enumerate(parts))
