"""Figures of robustness studies: accuracy over epsilon or pixels, under white-box and black-box attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from biotorch.experiment.results import Result
from biotorch.report.series import banded
from biotorch.report.style import frame, new_figure, style, write
from biotorch.results.groups import by_configuration, label, method
from biotorch.robustness.measurement import interval

Measurement = Mapping[str, Any]

#: Marker fills that distinguish networks of one rule.
_FILLS = ("full", "none", "left", "bottom")


@dataclasses.dataclass(frozen=True)
class Network:
    """Studies of one configuration, with the name and look of their curves."""

    name: str
    studies: list[Result]
    look: dict[str, Any]

    @property
    def seeds(self) -> int:
        return len({study["config"]["experiment"]["seed"] for study in self.studies})

    @property
    def one_gradient(self) -> bool:
        """Whether the network was trained by backpropagation, so that both gradients are equal."""
        return bool(self.studies[0]["config"]["model"]["mode"]["type"] == "backpropagation")


def figures_of(study: Result) -> list[Measurement]:
    return [each for each in study["study"]["measurements"] if each["purpose"] == "figure"]


def of_attack(studies: Sequence[Result], attack: str) -> list[Measurement]:
    return [each for study in studies for each in figures_of(study) if each["attack"] == attack]


def networks_of(studies: Sequence[Result]) -> list[Network]:
    """Networks of the studies, one per configuration; networks of one colour differ in the fill of their markers."""
    groups = by_configuration(studies)
    architectures = {group[0]["config"]["model"]["architecture"] for group in groups}
    networks: list[Network] = []
    for group in groups:
        name, architecture = label(group, groups), group[0]["config"]["model"]["architecture"]
        if len(architectures) > 1 and architecture not in name.split():
            name = f"{name} {architecture}"
        color, marker = style(method(group[0]))
        shared = sum(each.look["color"] == color for each in networks)
        look = {"color": color, "marker": marker, "fillstyle": _FILLS[shared % len(_FILLS)]}
        networks.append(Network(name, group, look))
    return networks


def words_of(each: Measurement) -> tuple[str, ...]:
    """Settings in an attack's label, without the one on the x axis; queries are written out."""
    words = [word for word in each["label"].split()[1:] if word.split("=")[0] not in ("pixels", "queries")]
    queries = each["settings"].get("queries")
    return (*([f"{queries:,} queries"] if queries else []), *words)


def variants_of(studies: Sequence[Result], attack: str) -> dict[tuple[str, ...], str]:
    """Variants of an attack, each with the settings that distinguish it; queries are always included."""
    variants = list(dict.fromkeys(words_of(each) for each in of_attack(studies, attack)))
    common = set.intersection(*(set(words) for words in variants))
    return {
        words: " ".join(word for word in words if word not in common or word.endswith(" queries")) for words in variants
    }


def x_of(each: Measurement) -> float:
    return float(each["settings"]["pixels"] if each["attack"] == "few_pixel" else each["epsilon"])


def curve_of(
    network: Network, chosen: Callable[[Measurement], bool]
) -> tuple[list[float], list[float], list[float], list[float]] | None:
    """x, accuracy, and lower and upper end of the band, over the measurements for which `chosen` holds.

    None if there is no such measurement.
    """
    seeds: dict[int, dict[float, tuple[float, float, float]]] = {}
    for study in network.studies:
        for each in filter(chosen, figures_of(study)):
            points = seeds.setdefault(study["config"]["experiment"]["seed"], {})
            clean, n = each["clean_accuracy"], each["n"]
            points.setdefault(0.0, (clean, *interval(round(clean * n / 100), n)))
            points[x_of(each)] = (each["robust_accuracy"], *each["interval"])
    if not seeds:
        return None
    x = sorted(set.intersection(*(set(points) for points in seeds.values())))
    if len(seeds) == 1:
        [points] = seeds.values()
        mean, low, high = ([points[each][part] for each in x] for part in range(3))
        return x, mean, low, high
    values = [[points[each][0] for points in seeds.values()] for each in x]
    return x, *banded(values)


WHITE_BOX = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "eot_pgd": "averaged PGD\n(the paper's APGD)",
    "tpgd": "TPGD",
}
BLACK_BOX = {"few_pixel": "few-pixel", "square": "Square"}
_ROWS = {
    "feedback": "the rule's feedback gradient:\nwhat the paper measured",
    "true": "true gradient:\nwhat an attacker gets",
}
#: Line styles of the variants of one attack. Dotted lines are kept for random signs.
_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (9, 3)))
_NOISE = {"color": "0.45", "linestyle": ":"}
NORMS = {"linf": " (L∞)", "l2": " (L2)", "l1": " (L1)"}


def white_box_figure(studies: Sequence[Result], path: Path) -> Path | None:
    """Write figure 5 of the paper (see `draw_white_box`) and return its path, or None if there is nothing to draw.

    Examples:
        >>> from biotorch.experiment.measure import attack_run
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> study, _ = attack_run(Path("runs/example/rule=fa,seed=0"))
        >>> biotorch.report.white_box_figure([study], Path("white_box.png")).is_file()
        True
    """
    figure = draw_white_box(studies)
    return None if figure is None else write(figure, path)


def black_box_figure(studies: Sequence[Result], path: Path) -> Path | None:
    """Write figure 6 of the paper (see `draw_black_box`) and return its path, or None if there is nothing to draw.

    Examples:
        >>> from biotorch.experiment.measure import attack_run
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> study, _ = attack_run(Path("runs/example/rule=fa,seed=0"))
        >>> biotorch.report.black_box_figure([study], Path("black_box.png")) is None  # no such attack was run
        True
    """
    figure = draw_black_box(studies)
    return None if figure is None else write(figure, path)


def draw_white_box(studies: Sequence[Result]) -> Figure | None:
    """Figure 5 of the paper: accuracy over epsilon, with one column for each measured white-box attack.

    Attacks of the top row follow the feedback gradient, attacks of the bottom row the true gradient. A network trained
    by backpropagation has only one gradient, and the same curve in both rows. Bands are 95 % intervals. With several
    seeds, a curve is the mean at the epsilons that all of them have, and the band is the standard deviation. Every
    curve starts at the accuracy without an attack. Returns None if no white-box attack was measured.
    """
    attacks = [name for name in WHITE_BOX if of_attack(studies, name)]
    if not attacks:
        return None
    networks = networks_of(studies)
    figure = new_figure(max(6.0, 1 + 2.4 * len(attacks)), 6.2)
    grid = figure.subplots(2, len(attacks), sharex=True, sharey=True, squeeze=False)
    for row, gradient in zip(grid, _ROWS, strict=True):
        row[0].set_ylabel(f"{_ROWS[gradient]}\n\naccuracy (%)")
        for axes, attack in zip(row, attacks, strict=True):
            _panel(axes, networks, variants_of(studies, attack), attack, gradient)
            _noise(axes, networks)
    for axes, attack in zip(grid.flat, [*attacks, *attacks], strict=True):
        axes.set_title(WHITE_BOX[attack], fontsize="medium")
    for axes in grid[1]:
        axes.set_xlabel(_epsilon(studies, attacks))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 5, 10]))
    noise = [_line("random signs, same markers", **_NOISE)] if of_attack(studies, "random_signs") else []
    _legend(figure, studies, networks, {each: WHITE_BOX[each].split("\n")[0] for each in attacks}, noise)
    return figure


def draw_black_box(studies: Sequence[Result]) -> Figure | None:
    """Figure 6 of the paper: accuracy over the number of pixels (few-pixel), and over epsilon (Square).

    Each number of queries has a line style. Curves and bands are as in `draw_white_box`. An attack that was not
    measured is left out. Returns None if neither was.
    """
    attacks = [name for name in BLACK_BOX if of_attack(studies, name)]
    if not attacks:
        return None
    networks = networks_of(studies)
    figure = new_figure(max(6.0, 1 + 4 * len(attacks)), 4.4)
    for axes, attack in zip(figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0], attacks, strict=True):
        _panel(axes, networks, variants_of(studies, attack), attack, None)
        axes.set_title(BLACK_BOX[attack], fontsize="medium")
        axes.set_xlabel("pixels changed" if attack == "few_pixel" else _epsilon(studies, [attack]))
        if attack == "few_pixel":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].set_ylabel("accuracy (%)")
    _legend(figure, studies, networks, {each: BLACK_BOX[each] for each in attacks}, [])
    return figure


def _panel(
    axes: Axes, networks: Sequence[Network], variants: Mapping[tuple[str, ...], str], attack: str, gradient: str | None
) -> None:
    for network in networks:
        for line, words in enumerate(variants):

            def chosen(each: Measurement, words: tuple[str, ...] = words, network: Network = network) -> bool:
                follows = each["gradient"] == gradient or network.one_gradient
                return each["attack"] == attack and words_of(each) == words and follows

            if (curve := curve_of(network, chosen)) is not None:
                x, mean, low, high = curve
                look = {**network.look, "markersize": 4, "markevery": max(1, round(len(x) / 10)), "linewidth": 1.4}
                dashes = _LINES[line % len(_LINES)]
                axes.plot(x, mean, **look, linestyle=dashes, label=network.name, clip_on=False)
                axes.fill_between(x, low, high, color=network.look["color"], alpha=0.15, linewidth=0)
    if not axes.get_lines():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_ylim(0, 100)
    frame(axes)


def _noise(axes: Axes, networks: Sequence[Network]) -> None:
    """Draw random signs, one grey line per network with the network's marker."""
    for network in networks:
        if (curve := curve_of(network, lambda each: each["attack"] == "random_signs")) is not None:
            look = {**network.look, **_NOISE, "markersize": 2.5, "linewidth": 1}
            axes.plot(curve[0], curve[1], **look, label=f"random signs, {network.name}", zorder=1.5)


def _epsilon(studies: Sequence[Result], attacks: Sequence[str]) -> str:
    norms = {each["settings"].get("norm") for attack in attacks for each in of_attack(studies, attack)}
    return f"ε{NORMS.get(norms.pop(), '') if len(norms) == 1 else ''}"


def _line(name: str, **look: Any) -> Line2D:
    return Line2D([], [], label=name, **{"color": "0.2", **look})


def _legend(
    figure: Figure,
    studies: Sequence[Result],
    networks: Sequence[Network],
    attacks: Mapping[str, str],
    more: Sequence[Line2D],
) -> None:
    """Add a legend below the panels: networks, variants of attacks and `more`.

    Its title gives the number of images and explains the bands.
    """
    several = max(network.seeds for network in networks) > 1
    entries = [
        _line(network.name + (f" (seeds: {network.seeds})" if several else ""), **network.look, markersize=4)
        for network in networks
    ]
    for attack, title in attacks.items():
        variants = list(variants_of(studies, attack).values())
        for index, words in enumerate(variants):
            if words or len(variants) > 1:
                entries.append(_line(f"{title}, {words or 'default settings'}", linestyle=_LINES[index % len(_LINES)]))
    entries += more
    longest = max(len(str(entry.get_label())) for entry in entries)
    columns = int(figure.get_figwidth() / (0.6 + 0.07 * longest))  # inches
    images = sorted({each["n"] for attack in attacks for each in of_attack(studies, attack)})
    bands = "standard deviation over seeds" if several else "95 % interval"
    if several and min(network.seeds for network in networks) == 1:
        bands += ", or 95 % interval for one seed"
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=max(1, min(len(entries), columns)),
        frameon=False,
        fontsize="small",
        title=f"{' and '.join(f'{n:,}' for n in images)} images; bands: {bands}",
        title_fontsize="small",
    )
    told = [(study["config"]["model"]["architecture"], study["config"]["data"]["dataset"]) for study in studies]
    if len(set(told)) == 1:
        figure.suptitle(f"{told[0][0]} on {told[0][1]}")
