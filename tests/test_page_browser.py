"""The report in a real browser: what a person sees, moves and prints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.report import __main__ as command
from engine.report import browser, make
from tests import reported
from tests.chromium import Page
from tests.reported import LAYERS, STEPS, make_run

HOSTILE = "</script><script>hit = 1</script>", "<img src=x onerror='hit = 2'>", "%{x}&lt;"
RATES = "document.getElementById('chart-2')"
# Height of each point of a run's rates, on the screen.
POINTS = (
    "[...document.querySelectorAll('#chart-2 .scatterlayer .trace:nth-child({}) .point')]"
    ".map(p => p.getBoundingClientRect().y)"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Three seeds of a hundred epochs, with classes of names that would be scripts."""
    pytest.importorskip("plotly")
    place = tmp_path_factory.mktemp("page")
    runs = [make_run(place / f"seed{n}", n, 100, classes=HOSTILE) for n in range(3)]
    make(runs, place / "page.html")
    return place / "page.html"


@pytest.fixture(scope="module")
def desktop(file) -> Iterator[Page]:
    with Page(file) as page:
        yield page


def drawn(page: Page) -> list[list[float]]:
    """The rates that the chart has, of each run."""
    return json.loads(
        page.value(f"JSON.stringify({RATES}.data.map(t => t.y.filter(y => y !== null)))")
    )


def logged(epochs: tuple[int, int, int]) -> list:
    return [
        pytest.approx(
            [reported.rate(seed, e, n, k) for n in range(len(LAYERS)) for k in range(STEPS)],
            rel=1e-5,
        )
        for seed, e in enumerate(epochs)
    ]


def test_it_draws_everything_without_an_error(desktop):
    assert desktop.value("document.querySelectorAll('.chart svg.main-svg').length") >= 7
    assert desktop.errors == []


def test_it_opens_in_two_seconds(file):
    """Of its own thread, which processes beside it slow down, too, by caches and shared cores: so
    the least of three.
    """
    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > 2 * cores:
        pytest.skip(f"the machine is busy: a load of {load:.1f} on {cores} cores")
    opened = []
    for _ in range(3):
        with Page(file, watched=False) as page:
            opened.append(page.opened)
    assert min(opened) < 2, opened


def test_the_slider_moves_the_points(desktop):
    assert drawn(desktop) == logged((5, 10, 15))  # of each the best epoch
    said = "document.querySelector('output[for=slider-2]').textContent"
    assert desktop.value(said) == "best of each run (seed 0: 5; seed 1: 10; seed 2: 15)"
    before = [desktop.value(POINTS.format(n)) for n in (1, 2, 3)]
    assert [len(points) for points in before] == [len(LAYERS) * STEPS] * 3
    desktop.value("document.getElementById('slider-2').focus()")
    desktop.key("End")
    desktop.until(f"{said} === 'epoch 100'")
    assert drawn(desktop) == logged((100, 100, 100))
    after = [desktop.value(POINTS.format(n)) for n in (1, 2, 3)]
    for was, now in zip(before, after, strict=True):
        assert sum(abs(a - b) > 1 for a, b in zip(was, now, strict=True)) > 30
    desktop.key("ArrowLeft")
    desktop.until(f"{said} === 'epoch 99'")
    assert drawn(desktop) == logged((99, 99, 99))
    desktop.key("Home")
    desktop.until(f"{said}.startsWith('best')")
    assert drawn(desktop) == logged((5, 10, 15))
    assert desktop.errors == []


def hovered(page: Page, chart: int, points: str, at: int) -> str:
    """What is told of a point on which the mouse stands."""
    page.value(f"document.getElementById('chart-{chart}').scrollIntoView({{block: 'center'}})")
    place = f"document.querySelectorAll('#chart-{chart} {points}')[{at}]"
    page.value(f"box = {place}.getBoundingClientRect(); 0")
    page.mouse(*page.value("[box.x + box.width / 2, box.y + box.height / 2]"))
    page.until(f"!!document.querySelector('#chart-{chart} .hoverlayer text')")
    return page.value(f"document.querySelector('#chart-{chart} .hoverlayer').textContent")


def test_a_point_names_its_layer_and_step(desktop):
    at = 2 * STEPS + 3  # of the third tensor the fourth step
    words = hovered(desktop, 2, ".scatterlayer .trace:nth-child(2) .point", at)
    assert words == f"{LAYERS[2]}, step 4seed 1: {reported.rate(1, 10, 2, 3):.5g}"


def test_a_star_names_its_run_and_epoch(desktop):
    words = hovered(desktop, 1, ".scatterlayer .trace .point", 1)
    assert words == "seed 1, best epoch 10: 90.00%"


def test_names_of_a_data_set_run_nothing(desktop):
    assert desktop.value("typeof hit") == "undefined"
    ticks = "[...document.querySelectorAll('#chart-4 .xtick text')].map(t => t.textContent)"
    assert desktop.value(ticks) == [*HOSTILE]
    assert desktop.value("document.querySelector('.task th:nth-child(1)').textContent") == "class"
    named = "[...document.querySelectorAll('.task tbody th')].map(t => t.lastChild.data.trim())"
    assert desktop.value(named) == [*HOSTILE[:2]]


RIGHT = "e => e.getBoundingClientRect().right"
SIZE = "e => parseFloat(getComputedStyle(e).fontSize)"


def every(kind: str) -> str:
    return f"[...document.querySelectorAll('{kind}')]"


def test_a_phone_shows_all_of_its_width(file):
    with Page(file, 360, 740, phone=True) as page:
        assert page.value("document.documentElement.scrollWidth") <= 360
        assert page.value(f"Math.max(...{every('svg, table, img')}.map({RIGHT}))") <= 360
        assert page.value(f"Math.min(...{every('p, td, th, output')}.map({SIZE}))") >= 12
        assert page.errors == []


WIDTHS = "[...document.querySelectorAll('.chart .svg-container')].map(e => e.clientWidth)"


def test_print_has_every_chart_in_the_width_of_paper(desktop):
    before = desktop.value(WIDTHS)
    desktop.value(f"addEventListener('beforeprint', () => {{ printed = {WIDTHS} }})")
    assert desktop.pdf().startswith(b"%PDF")
    printed = desktop.value("printed")
    assert len(printed) == len(before) >= 7 and set(printed) == {680}
    assert desktop.value("[...document.querySelectorAll('details')].every(d => d.open)")
    desktop.until(f"JSON.stringify({WIDTHS}) === '{json.dumps(before, separators=(',', ':'))}'")
    assert min(before) > 700 and desktop.errors == []


def test_the_command_prints(file, tmp_path, capsys):
    if browser.find() is None:
        pytest.skip("no Chromium or Chrome on PATH")
    assert (
        command.main(
            [
                str(file.parent / "seed0"),
                "--pdf",
                str(tmp_path / "page.pdf"),
                "-o",
                str(tmp_path / "page.html"),
            ]
        )
        == 0
    )
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and len(content) > 50_000
    assert capsys.readouterr().out.splitlines()[-1] == f"saved in {tmp_path / 'page.pdf'}"
