"""The report in a browser: it fits a screen, and its tables can be sorted."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from lt_pipeline.learning.evaluation.metrics.catalog import placed
from lt_pipeline.reports.documents import Row, html_report, html_table, table_rows

WIDTH = 1280


@pytest.fixture(scope="module")
def page():
    """A page of a browser as wide as a small screen."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or pytest.skip("needs Chromium in PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": WIDTH, "height": 900})
        browser.close()


def shown(page, headings, rows, costs=""):
    table = html_table(headings, rows)
    page.set_content(html_report("T", "L", table, costs, [], [], [], ([], []), (["run"], [])))


def column(page, place):
    return page.locator(f"tbody tr td:nth-child({place})").all_inner_texts()


def test_a_click_on_a_heading_sorts_and_papers_stay_below_their_method(page):
    rows = [
        Row(["more", "1,063", "61.1 ± 1.1", "ab"], of_paper=False),
        Row(["P, table 1", "", "99.0", ""], of_paper=True),
        Row(["ce", "23", "-2.5 [-3.1, -1.9]", "3e5"], of_paper=False),
        Row(["dbm bs", "-", "70", "12"], of_paper=False),
    ]
    shown(page, ["method", "seeds", "accuracy", "run"], rows)
    for heading, wanted in {
        "accuracy": (
            ["dbm bs", "more", "P, table 1", "ce"],
            ["ce", "more", "P, table 1", "dbm bs"],
        ),
        "seeds": (["more", "P, table 1", "ce", "dbm bs"], ["ce", "more", "P, table 1", "dbm bs"]),
        "method": (["more", "P, table 1", "dbm bs", "ce"], ["ce", "dbm bs", "more", "P, table 1"]),
    }.items():
        for order in wanted:
            page.get_by_text(heading, exact=True).click()
            assert column(page, 1) == order, heading
    assert page.locator("th[aria-sort]").all_inner_texts() == ["method"]


def test_a_report_of_all_metrics_fits_a_small_screen(page):
    label = {"label": "balanced_softmax", "runs": 5, "epochs": "200", "backbone": "resnet152"}
    known = (m for m in placed("comparison") if not m.from_detection and not m.from_decided)
    metrics = {m.key: m for m in known}
    counted = {name: m for name, m in metrics.items() if name.startswith("cost/")}
    others = {name: m for name, m in metrics.items() if name not in counted}
    fine = dict.fromkeys(others, 0.987) | {f"{n} sd": 0.123 for n in others}
    large = dict.fromkeys(counted, 1234567.8) | {f"{n} sd": 4321.0 for n in counted}
    summary = pd.DataFrame([{**label, **fine, **large}] * 3)
    headings, rows = table_rows(summary, [], others, settings=("epochs", "backbone"))
    headings += [
        "accuracy % minus balanced_softmax",
        "seeds needed",
        "AUROC odin %",
        "FPR95 odin %",
    ]
    cells = ["-11.46 [-42.4, +19.5]", "1,063", "70.0 ± 10.0", "80.0 ± 10.0"]
    wide = [Row([*row.cells, *cells], of_paper=False) for row in rows]
    shown(page, headings, wide, html_table(*table_rows(summary, [], counted)))
    assert len(headings) + len(counted) >= 20
    for box in page.locator(".wide").all():
        assert box.evaluate("box => box.scrollWidth") <= box.evaluate("box => box.clientWidth")
