"""The page in Chromium: it loads without errors or requests, filters and figures work, by keyboard, too."""

from __future__ import annotations

import shutil

import pytest
from commands import invoke
from playwright.sync_api import sync_playwright
from runs import ALL_METRICS, quick

from biotorch.experiment import run
from biotorch.report.page import write_page
from biotorch.results.collecting import collect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    run(quick(folder, "sweep={model.mode.type: [backpropagation, fa, usf], experiment.seed: [0, 1]}", *ALL_METRICS))
    store = folder / "quick"
    attacked = store / "rule=fa,seed=0"
    result = invoke("attack", attacked, "--images", "8")
    assert result.exit_code == 0, result.output
    return write_page(collect(store), folder / "page.html")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, path, scheme="light", width=1280, height=900, **more):
    """The page, and what it complained of or asked for."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda each: each.url.startswith(("file:", "data:", "blob:")) or complaints.append(each.url))
    page.goto(path.as_uri())
    return page, complaints


def to_figure(page, name):
    page.locator(f"#{name}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{name} .main-svg")


def unfold(page):
    """Open the panel of choices and the runs of every rule."""
    page.evaluate("document.querySelectorAll('#choose, .rule-runs').forEach(each => { each.open = true; })")


def visible_rules(page, place):
    return {row.get_attribute("data-rule") for row in page.locator(place).all() if row.is_visible()}


@pytest.mark.parametrize(
    ("scheme", "width", "height"),
    [
        ("light", 1280, 900),
        ("dark", 390, 844),
        pytest.param("dark", 1280, 900, marks=pytest.mark.slow),
        pytest.param("light", 390, 844, marks=pytest.mark.slow),
    ],
)
def test_every_figure_draws_and_nothing_is_asked_for(browser, path, scheme, width, height):
    page, complaints = opened(browser, path, scheme, width, height)
    for name in ("attacked", "learning", "cost", "layers", "depth"):
        to_figure(page, name)
        assert page.locator(f"#{name} .scatterlayer .trace").count() >= 1
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_choosing_rules_filters_tables_runs_and_figures(browser, path):
    page, complaints = opened(browser, path)
    unfold(page)
    to_figure(page, "learning")
    before = page.evaluate("document.querySelector('#learning .plot').data.length")
    assert visible_rules(page, "#headline tbody tr") == {"backpropagation", "fa", "usf"}
    page.locator("fieldset[data-facet=rule] input[value=fa]").uncheck()
    assert visible_rules(page, "#headline tbody tr") == {"backpropagation", "usf"}
    assert visible_rules(page, ".run") == visible_rules(page, ".dots .row[data-rule]") == {"backpropagation", "usf"}
    assert "2 of 3 rules" in page.locator("#chosen").inner_text()
    to_figure(page, "learning")
    assert page.evaluate("document.querySelector('#learning .plot').data.length") < before
    assert page.locator(".verdicts > li").first.is_hidden()
    page.locator("fieldset[data-facet=seed] input[value='1']").uncheck()
    assert page.locator(".run:visible").count() == 2
    page.locator("button[data-none=rule]").click()
    assert "None of the chosen runs" in page.locator("#learning .plots").inner_text()
    page.locator("button[data-all=rule]").click()
    to_figure(page, "learning")
    assert complaints == []
    page.context.close()


def test_tables_filter_by_text_and_sort_by_number(browser, path):
    page, complaints = opened(browser, path)
    page.locator("#runs input").fill("usf")
    assert visible_rules(page, ".run") == {"usf"}
    assert page.locator("#runs > .count").inner_text() == "2 of 6 shown"
    page.locator("#runs input").fill("")
    head = page.locator("#headline th", has_text="test error")
    column = page.evaluate("head => [...head.parentNode.children].indexOf(head)", head.element_handle())
    for direction in ("ascending", "descending"):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        cells = [row.locator("td").nth(column).inner_text() for row in page.locator("#headline tbody tr").all()]
        values = [float(cell.split()[0]) for cell in cells]
        assert values == sorted(values, reverse=direction == "descending")
    assert complaints == []
    page.context.close()


def test_layers_seeds_and_views_can_be_chosen(browser, path):
    page, complaints = opened(browser, path)
    to_figure(page, "layers")

    def last():
        to_figure(page, "layers")
        return page.evaluate(
            "document.querySelector('#layers .plot').data.find(each => each.name === 'fa' && each.customdata).y.at(-1)"
        )

    everything = last()
    page.locator(".choose-layers > summary").click()
    assert not page.locator(".choose-layers input").last.is_checked()  # the output layer
    page.locator(".choose-layers input").first.uncheck()
    assert last() != everything
    page.locator("select[data-figure=layers][data-option=view]").select_option("each")
    to_figure(page, "layers")
    names = page.evaluate("[...document.querySelectorAll('#layers h4')].map(each => each.textContent)")
    assert any(name.endswith(": fa") for name in names)
    page.locator("#each-seed").check()
    to_figure(page, "learning")
    assert page.evaluate("[...document.querySelector('#learning .plot').data].some(each => each.name === 'fa, seed 1')")
    assert complaints == []
    page.context.close()


def test_the_command_is_copied(browser, path):
    page, _ = opened(browser, path)
    unfold(page)
    run_ = page.locator(".run").first
    run_.locator("summary").first.press("Enter")
    run_.locator("button", has_text="Copy commands").click()
    run_.locator("button", has_text="Copied").wait_for()
    page.context.close()


def test_without_javascript_tables_and_runs_are_there(browser, path):
    page, _ = opened(browser, path, java_script_enabled=False)
    assert page.locator("#headline tbody tr:visible").count() == 3
    page.locator(".rule-runs > summary").first.click()
    assert page.locator(".run:visible").count() == 2
    assert page.locator(".dots .row[data-rule]:visible").count() == 3
    assert not page.locator(".filter").first.is_visible()
    assert page.get_by_text("needs JavaScript").is_visible()
    page.context.close()


def test_it_prints_with_its_figures(browser, path):
    page, complaints = opened(browser, path)
    assert page.pdf().startswith(b"%PDF")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    drawn = page.locator(".plot .main-svg").count()
    assert drawn >= 2 * page.locator(".plot").count() > 0
    assert complaints == []
    page.context.close()


def test_the_first_screen_has_conclusion_and_dot_plot_above_the_controls(browser, path):
    page, _ = opened(browser, path)
    lead, dots, choose = (page.locator(each).first.bounding_box() for each in (".lead", ".dots", "#choose"))
    assert max(each["y"] + each["height"] for each in (lead, dots)) <= choose["y"] < 900
    places = {name: page.locator(f"#{name}").bounding_box() for name in ("learning", "layers", "depth", "cost")}
    assert places["learning"]["y"] == places["layers"]["y"]  # side by side
    assert places["layers"]["x"] > 600
    page.locator("nav a", has_text="Tables").click()
    panel, head = (page.locator(each).bounding_box() for each in ("#choose", "#tables h2"))
    assert panel["y"] + panel["height"] <= head["y"]
    page.context.close()


def test_a_table_that_is_wider_than_the_screen_says_so(browser, path):
    page, _ = opened(browser, path, width=390, height=844)
    headline = page.locator("#headline")
    assert headline.locator(".more").is_visible()
    headline.locator(".scroll").evaluate("each => { each.scrollLeft = each.scrollWidth; }")
    headline.locator(".more").wait_for(state="hidden")
    page.context.close()
