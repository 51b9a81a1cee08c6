"""Drawings of the learning rules as SVG: one panel per rule, and four rules at a glance.

Each panel shows a network with two hidden layers. Above, activity goes to the right through the forward weights W;
below, the error goes to the left. Matrices are Hinton diagrams: the area of a square is the size of a weight; filled
squares are positive, hollow ones negative. Where a rule reads W, a link leads from W to its feedback weights.
"""

# ruff: noqa: RUF001 - formulas have minus signs, primes and Greek letters
from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import textwrap
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from biotorch import rules

Matrix = list[list[float]]


@dataclasses.dataclass(frozen=True)
class Palette:
    """Colours of one theme; `verdicts` by what a rule transports."""

    page: str
    card: str
    node: str
    ink: str
    muted: str
    line: str
    positive: str
    negative: str
    verdicts: dict[str, str]


LIGHT = Palette(
    "#ffffff", "#f6f8fa", "#ffffff", "#1f2328", "#59636e", "#818b98", "#0550ae", "#bc4c00",
    {"weights": "#cf222e", "signs": "#8a5a00", "nothing": "#116329"},
)  # fmt: skip
DARK = Palette(
    "#0d1117", "#161b22", "#0d1117", "#f0f6fc", "#9198a1", "#6e7681", "#79c0ff", "#ffa657",
    {"weights": "#ff7b72", "signs": "#e3b341", "nothing": "#56d364"},
)  # fmt: skip
THEMES = {"": LIGHT, "-dark": DARK}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What a panel says about a rule, in words and symbols; `_2` or `_{n-1}` is a subscript, `^T` a superscript.

    Attributes:
        rule: name of the rule. Its title, what it transports and whether it is direct are on its class.
        sentence: what goes backwards.
        feedback: the feedback weights of layer #; empty if nothing goes back.
        formula: the errors δ of the hidden layers, with # in place of a layer's number.
        learning: how the feedback weights follow from W, or change.
        link: what leads from W to the feedback weights; empty if nothing does.
        border: outline of the feedback weights: `fixed`, `redrawn` or `learns`.
        sent: what the output sends back.
    """

    rule: str
    sentence: str
    feedback: str = "B_#^T"
    formula: str = "δ_2 = B_3^T e ⊙ φ′(z_2),   δ_1 = B_2^T δ_2 ⊙ φ′(z_1)"
    learning: str = ""
    link: str = ""
    border: str = "fixed"
    sent: str = "e"

    @property
    def title(self) -> str:
        title = rules.get(self.rule).title
        return title[0].upper() + title[1:]

    @property
    def transports(self) -> str:
        """The audit's verdict."""
        return rules.get(self.rule).transports

    @property
    def direct(self) -> bool:
        """Whether the output sends its error to every hidden layer."""
        return rules.get(self.rule).direct

    @property
    def lines(self) -> list[str]:
        """Lines of formulas; the last one leaves room for the verdict."""
        return [self.formula, self.learning] if self.learning or "sign(e)" in self.formula else [self.formula]


#: Every rule, in the order of `rules.available()`.
_DRAWINGS = (
    Drawing(
        "backpropagation",
        "The error goes back through the forward weights W, transposed. This use of W on the way back is weight "
        "transport.",
        feedback="W_#^T",
        formula="δ_2 = W_3^T e ⊙ φ′(z_2),   δ_1 = W_2^T δ_2 ⊙ φ′(z_1)",
        link="copied",
    ),
    Drawing(
        "fa",
        "The error goes back through other weights B, which are random and fixed.",
    ),
    Drawing(
        "dfa",
        "The output's error goes straight to each hidden layer, through a random and fixed B.",
        formula="δ_2 = B_3^T e ⊙ φ′(z_2),   δ_1 = B_2^T e ⊙ φ′(z_1)",
    ),
    Drawing(
        "usf",
        "The error goes back through weights that have the signs of W and one magnitude s.",
        learning="B = s sign(W)",
        link="signs",
    ),
    Drawing(
        "brsf",
        "B has the signs of W. Its magnitudes are random and drawn again after each update.",
        learning="B = |R| ⊙ sign(W),   R redrawn",
        link="signs",
        border="redrawn",
    ),
    Drawing(
        "frsf",
        "B has the signs of W. Its magnitudes are random and fixed.",
        learning="B = |R| ⊙ sign(W),   R drawn once",
        link="signs",
    ),
    Drawing(
        "kp",
        "B starts at random. It gets the same step u as W and the same decay, so that the difference W − B shrinks. "
        "Drawn after training.",
        learning="W ← (1 − λ) W + u,   B ← (1 − λ) B + u",
        border="learns",
    ),
    Drawing(
        "wm",
        "After each update noise x goes through the layer, and B learns from the response y. Drawn after training.",
        learning="B ← (1 − λ) B + η y x^T,   y = W x",
        border="learns",
    ),
    Drawing(
        "ia",
        "After each update noise x goes through the layer, and B learns to reconstruct it from the response y. Drawn "
        "after training.",
        learning="B ← (1 − ηβ) B + η y (αx − γB^Ty)^T,   y = W x",
        border="learns",
    ),
    Drawing(
        "sa",
        "After each update B takes a step towards W. For this it reads W. Drawn after training.",
        learning="B ← B − η (B − W)",
        link="W",
        border="learns",
    ),
    Drawing(
        "dkp",
        "As direct feedback alignment, with a B that learns from the error e and the layer's input y.",
        formula="δ_2 = B_3^T e ⊙ φ′(z_2),   δ_1 = B_2^T e ⊙ φ′(z_1)",
        learning="B_n ← (1 − λ) B_n − η e y_{n−1}^T",
        border="learns",
    ),
    Drawing(
        "sdfa",
        "As direct feedback alignment, with the sign of each output's error in place of the error.",
        formula="δ_2 = B_3^T sign(e) ⊙ φ′(z_2),   δ_1 = B_2^T sign(e) ⊙ φ′(z_1)",
        sent="sign(e)",
    ),
    Drawing(
        "drtp",
        "The targets y* go straight to each hidden layer, through a random and fixed B. Only the output layer learns "
        "from the error.",
        formula="δ_2 = −B_3^T y* ⊙ φ′(z_2),   δ_1 = −B_2^T y* ⊙ φ′(z_1)",
        sent="y*",
    ),
    Drawing(
        "shallow",
        "Nothing goes back. Only the output layer learns; the hidden layers stay as they were drawn.",
        feedback="",
        formula="δ_2 = 0,   δ_1 = 0",
    ),
    Drawing(
        "sham",
        "As backpropagation, through a B that is set to W after each update. A test of the machinery for learned B.",
        learning="B ← W",
        link="copied",
        border="learns",
    ),
)
DRAWINGS = {each.rule: each for each in _DRAWINGS}
#: Rules of the picture at a glance.
GLANCE = ("backpropagation", "fa", "dfa", "usf")

_WIDTH = 480
#: Units of the layers: input, two hidden layers, output.
_UNITS = (3, 4, 4, 3)
#: Middles of the layers and of the matrices between them; rows of activity and of errors.
_LAYERS = (40, 173, 306, 439)
_BETWEEN = tuple((left + right) / 2 for left, right in itertools.pairwise(_LAYERS))
_FORWARD, _BACKWARD, _BELOW = 122, 192, 252
_HALF, _TOP, _BOTTOM = 19, 98, 216
_CELL = 10
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_DASHES = {"fixed": "", "redrawn": ' stroke-dasharray="1.5 2"', "learns": ' stroke-dasharray="5 2.5"'}


def render() -> dict[str, str]:
    """All drawings by their path within docs/images."""
    files = {}
    for suffix, palette in THEMES.items():
        files[f"transport{suffix}.svg"] = _at_a_glance(palette)
        for name, drawing in DRAWINGS.items():
            height = _height(name)
            panel = _panel(name, palette, height)
            files[f"rules/{name}{suffix}.svg"] = _svg(_WIDTH, height, drawing.title, panel, palette)
    return files


def forward_weights(layer: int) -> Matrix:
    """W of layer 1, 2 or 3, (out, in), with entries of magnitude .3 to 1."""
    drawn = random.Random(f"W{layer}")
    return _matrix(_UNITS[layer], _UNITS[layer - 1], lambda: drawn.choice((-1, 1)) * drawn.uniform(0.3, 1))


def feedback_weights(rule: str, layer: int) -> Matrix:
    """B of layer 2 or 3 under a rule, in the shape of W, and under a direct rule (units of the output, in)."""
    weight, drawn = forward_weights(layer), random.Random(f"B{layer}")
    if DRAWINGS[rule].direct:
        return _matrix(_UNITS[-1], _UNITS[layer - 1], lambda: drawn.choice((-1, 1)) * drawn.uniform(0.3, 1))
    by_entry: dict[str, Callable[[float], float]] = {
        "fa": lambda _: drawn.choice((-1, 1)) * drawn.uniform(0.3, 1),
        "usf": lambda w: math.copysign(0.65, w),
        "brsf": lambda w: math.copysign(drawn.uniform(0.3, 1), w),
        "frsf": lambda w: math.copysign(drawn.uniform(0.3, 1), w),
        **dict.fromkeys(("kp", "wm", "ia"), lambda w: w + drawn.uniform(-0.15, 0.15)),
    }
    return [[by_entry.get(rule, lambda w: w)(w) for w in row] for row in weight]


def _matrix(rows: int, columns: int, entry: Callable[[], float]) -> Matrix:
    return [[entry() for _ in range(columns)] for _ in range(rows)]


def _height(rule: str) -> int:
    drawing = DRAWINGS[rule]
    return 262 + 46 * drawing.direct + 22 * (len(drawing.lines) > 1)


def _at_a_glance(palette: Palette) -> str:
    gap, head = 14, 14
    rows = [GLANCE[:2], GLANCE[2:]]
    parts, y = [], head
    for row in rows:
        height = max(map(_height, row))
        for column, name in enumerate(row):
            x = gap + column * (_WIDTH + gap)
            parts.append(f'<g transform="translate({x} {y})">{_panel(name, palette, height)}</g>')
        y += height + gap
    width = 2 * _WIDTH + 3 * gap
    legend = "W forward weights   B feedback weights   e error of the output   δ error of a hidden layer"
    parts.append(_text(gap, y + 10, legend, palette.muted, 13))
    x = width - 345
    parts.append(_square(x, y + 5, 8, 1, palette) + _text(x + 10, y + 10, "positive", palette.muted, 13))
    parts.append(_square(x + 80, y + 5, 8, -1, palette) + _text(x + 90, y + 10, "negative", palette.muted, 13))
    parts.append(_text(x + 160, y + 10, "area: size of the weight", palette.muted, 13))
    return _svg(width, y + 26, "Weight transport, and three rules without it", "".join(parts), palette)


def _svg(width: float, height: float, title: str, content: str, palette: Palette) -> str:
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{color}"/></marker>'
        for name, color in {"forward": palette.line, **palette.verdicts}.items()
    )
    content = re.sub(r"><(?!/?tspan|/text)", ">\n<", content)  # no white space inside of a text
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="{_FONT}">\n<title>{escape(title)}</title>\n<defs>{heads}</defs>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="{palette.page}"/>\n{content}\n</svg>\n'
    )


def _panel(rule: str, palette: Palette, height: int) -> str:
    drawing = DRAWINGS[rule]
    color, short = palette.verdicts[drawing.transports], len(drawing.title) < 45
    parts = [
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="{palette.card}"/>',
        _text(14, 25, drawing.title, palette.ink, 15 if short else 13, "600"),
        _text(_WIDTH - 14, 25, rule, palette.muted, 13, anchor="end"),
        *(
            _text(14, 45 + 17 * number, line, palette.muted, 12.5)
            for number, line in enumerate(textwrap.wrap(drawing.sentence, 70))
        ),
        *(_layer(number, drawing, palette) for number in range(len(_UNITS))),
    ]
    for layer, x in enumerate(_BETWEEN, 1):
        frozen = rule == "shallow" and layer < len(_BETWEEN)
        parts.append(_hinton(x, _FORWARD, forward_weights(layer), palette, palette.line, opacity=0.4 if frozen else 1))
        parts.append(_text(x, _FORWARD - 28, f"W_{layer}" + ", frozen" * frozen, palette.ink, 12, anchor="middle"))
        parts += _through(
            x, _FORWARD, _LAYERS[layer - 1], _LAYERS[layer], _width(forward_weights(layer)), "forward", palette
        )
    for layer in (3, 2) if drawing.feedback else ():
        parts += _feedback(rule, layer, palette, color)
    for number, line in enumerate(reversed(drawing.lines)):
        parts.append(_text(14, height - 14 - 22 * number, line, palette.ink, 13.5, family="serif"))
    parts.append(_text(_WIDTH - 14, height - 14, f"transports {drawing.transports}", color, 13, "600", "end"))
    return "".join(parts)


def _layer(number: int, drawing: Drawing, palette: Palette) -> str:
    x, last = _LAYERS[number], number == len(_LAYERS) - 1
    above = "x" if number == 0 else "ŷ" if last else f"y_{number}"
    below = "" if number == 0 else drawing.sent if last else f"δ_{number}"
    small = 9.5 if len(below) > 5 else 14
    return (
        f'<rect x="{x - _HALF}" y="{_TOP}" width="{2 * _HALF}" height="{_BOTTOM - _TOP}" rx="6" fill="{palette.node}" '
        f'stroke="{palette.line}"/>'
        + _text(x, _FORWARD + 5, above, palette.ink, 14, anchor="middle", family="serif")
        + _text(x, _BACKWARD + 5, below, palette.ink, small, anchor="middle", family="serif")
    )


def _feedback(rule: str, layer: int, palette: Palette, color: str) -> Sequence[str]:
    """Feedback weights of a layer, with the way of the error through them and the link from W."""
    drawing = DRAWINGS[rule]
    matrix = [list(row) for row in zip(*feedback_weights(rule, layer), strict=True)]
    x, below = _BETWEEN[layer - 1], drawing.direct and layer == 2
    y = _BELOW if below else _BACKWARD
    parts = [_hinton(x, y, matrix, palette, color, drawing.border)]
    half = _width(matrix) / 2 + 4
    name = _text(x, y + 36, drawing.feedback.replace("#", str(layer)), color, 12, anchor="middle")
    if below:
        name = _text(x + half + 8, y - 6, drawing.feedback.replace("#", str(layer)), color, 12)
        parts += [
            _path(f"M{_LAYERS[3]} {_BOTTOM}V{y}H{x + half}", color),
            _path(f"M{x - half} {y}H{_LAYERS[1]}V{_BOTTOM + 1}", color, drawing.transports),
        ]
    else:
        parts += _through(x, y, _LAYERS[layer], _LAYERS[layer - 1], _width(matrix), drawing.transports, palette)
    if drawing.link:
        parts.append(_path(f"M{x} {_FORWARD + 25}V{_BACKWARD - 25}", color, drawing.transports))
        parts.append(_text(x + 7, (_FORWARD + _BACKWARD) / 2 + 2, drawing.link, color, 11))
    return [*parts, name]


def _through(x: float, y: float, start: float, end: float, width: float, head: str, palette: Palette) -> Sequence[str]:
    """Two arrows, from a layer to a matrix and on to the next layer."""
    step = math.copysign(1, end - start)
    color = palette.line if head == "forward" else palette.verdicts[head]
    half = width / 2 + 4
    return (
        _path(f"M{start + step * _HALF} {y}H{x - step * half}", color),
        _path(f"M{x + step * half} {y}H{end - step * (_HALF + 1)}", color, head),
    )


def _path(d: str, color: str, head: str = "") -> str:
    end = f' marker-end="url(#{head})"' if head else ""
    return f'<path d="{d}" fill="none" stroke="{color}" stroke-width="1.8"{end}/>'


def _width(matrix: Matrix) -> float:
    return _CELL * len(matrix[0])


def _hinton(
    x: float, y: float, matrix: Matrix, palette: Palette, outline: str, border: str = "fixed", opacity: float = 1
) -> str:
    width, height = _width(matrix) + 4, _CELL * len(matrix) + 4
    squares = "".join(
        _square(
            x + _CELL * (column - (len(row) - 1) / 2), y + _CELL * (place - (len(matrix) - 1) / 2), 8.5, entry, palette
        )
        for place, row in enumerate(matrix)
        for column, entry in enumerate(row)
    )
    return (
        f'<g opacity="{opacity:g}"><rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" '
        f'height="{height:g}" rx="2" fill="{palette.node}" stroke="{outline}"{_DASHES[border]}/>{squares}</g>'
    )


def _square(x: float, y: float, most: float, entry: float, palette: Palette) -> str:
    """A square around (x, y) with an area in proportion to the entry: filled if positive, hollow if negative."""
    side = most * math.sqrt(min(1, abs(entry)))
    if entry > 0:
        look = f'fill="{palette.positive}"'
    else:
        side, look = side - 1.4, f'fill="none" stroke="{palette.negative}" stroke-width="1.4"'
    return f'<rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}" {look}/>'


def _text(
    x: float, y: float, content: str, color: str, size: float, weight: str = "", anchor: str = "", family: str = ""
) -> str:
    look = "".join(
        f' {name}="{value}"'
        for name, value in {"font-weight": weight, "text-anchor": anchor, "font-family": family}.items()
        if value
    )
    place = f'x="{x:g}" y="{y:g}" fill="{color}" font-size="{size:g}"{look}'
    return f'<text {place} xml:space="preserve">{_spans(content, size)}</text>'


def _spans(content: str, size: float) -> str:
    """Text with subscripts and superscripts, each moved by a share of the size and back."""
    parts, moved = [], 0.0
    for plain, script in re.findall(r"([^_^]+)|([_^](?:\{[^}]*\}|.))", content):
        wanted = 0.0 if plain else size * (0.25 if script[0] == "_" else -0.35)
        shift, moved = wanted - moved, wanted
        dy = f' dy="{shift:.1f}"' if shift else ""
        smaller = "" if plain else f' font-size="{0.75 * size:.1f}"'
        words = escape(plain or script[1:].strip("{}"))
        parts.append(f"<tspan{dy}{smaller}>{words}</tspan>" if dy or smaller else words)
    return "".join(parts)
