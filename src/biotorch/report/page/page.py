"""Writer of the page, one self-contained HTML file that a browser opens from disk."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import biotorch
from biotorch import _files
from biotorch.report.page.content import content
from biotorch.report.page.figures import figures
from biotorch.results.collecting import Collection

_HERE = Path(__file__).parent


def write_page(collection: Collection, path: Path, title: str | None = None) -> Path:
    """Write the page of a collection of runs, and return its path.

    The page holds a conclusion, a dot plot of errors, the headline table, the differences to backpropagation,
    robustness studies with the checks that fired, interactive figures, and every run with its configuration, versions,
    hash and the commands that repeat it. It lists unfinished runs and unreadable files. Conclusion, dot plot and tables
    work without JavaScript, and the page loads nothing from the network.

    Args:
        collection: runs found by `biotorch.results.collecting.collect`.
        path: path of the file, which is replaced atomically; its folder is created if missing.
        title: title of the page. Default: the names of the experiments.

    Raises:
        ValueError: there is no finished run.
        OSError: the file cannot be written.
    """
    if not collection.runs:
        raise ValueError("collection: at least one finished run is needed for a page")
    drawn = figures(collection)
    names = dict.fromkeys(str(run.result["config"]["experiment"]["name"]) for run in collection.runs)
    page = _template().render(
        title=title or ", ".join(names),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=biotorch.__version__,
        css=Markup(_read("page.css")),
        scripts=[Markup(_script(text)) for text in (get_plotlyjs(), _read("page.js"), _read("figures.js"))],
        figures=drawn,
        data=Markup(_json(drawn)),
        **content(collection, path.parent),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.write_text(path, page)
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["numbered"] = lambda names: list(enumerate(names))
    return environment.get_template("page.html.j2")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """Script text whose strings cannot close the script element."""
    return text.replace("</script", r"<\/script")


def _json(value: object) -> str:
    """JSON that is safe inside a script element, whatever names it contains."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
