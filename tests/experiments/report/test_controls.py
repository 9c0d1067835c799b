"""What each control of the page changes."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests import made_results as made
from tests.experiments.report.conftest import LAYOUT, cells_of, heights, hover, names

# Its controls


def test_each_control_of_the_plot_changes_what_it_should(sweep_page):
    page = sweep_page
    assert page.evaluate(f"{LAYOUT}.yaxis.title.text") == "AUC"
    assert names(page)[:3] == ["LiRA · clip", "LiRA · secagg", "RMIA · clip"]
    page.select_option("#plot-variant", label="clip")
    assert names(page) == ["LiRA", "RMIA", "FedMIA", "blind (label only)"]
    assert page.evaluate(f"{LAYOUT}.xaxis.ticktext") == ["1", "8", "64", "∞"]

    before = heights(page)
    page.select_option("#plot-group", label="ordinary")
    assert heights(page) != before
    before = heights(page)
    page.select_option("#plot-variant", label="secagg")
    assert heights(page) != before

    page.select_option("#plot-view", label="server")
    assert names(page) == ["FedMIA"]
    page.select_option("#plot-view", label="all")
    page.uncheck("#series label:has-text('RMIA') input")
    assert names(page) == ["LiRA", "FedMIA", "blind (label only)"]
    page.click("#series-none")
    assert names(page) == []
    assert "Nothing is chosen" in page.locator("#plot-note").inner_text()
    page.click("#series-all")
    assert len(names(page)) == 4

    page.select_option("#plot-metric", label="TPR at 0.01 FPR")
    assert page.evaluate(f"{LAYOUT}.yaxis.title.text") == "TPR at 0.01 FPR"
    page.select_option("#plot-scale", label="logarithmic")
    assert page.evaluate(f"{LAYOUT}.yaxis.type") == "log"
    page.select_option("#plot-x", label="variant")
    assert page.evaluate(f"{LAYOUT}.xaxis.ticktext") == ["clip", "secagg"]
    page.select_option("#plot-by", label="View")
    assert {name.split(" · ")[0] for name in names(page)} == {"released_model", "server"}


def test_hovering_gives_the_value_its_interval_the_attack_and_the_run(opened, sweep_path):
    page = opened(sweep_path)
    page.locator("#plot").scroll_into_view_if_needed()
    page.click("#series-none")
    page.check("#series label:has-text('FedMIA') input")
    page.select_option("#plot-variant", label="clip")
    told = hover(page)
    row = page.locator("#plot-numbers tbody tr").first.locator("td").all_text_contents()
    assert row[0] == "FedMIA"
    for part in (row[0], row[2], row[3], made.hash_of(0), "ε = 1", "view server"):
        assert part in told
    assert row[3].startswith("[")
    assert row[-1] == made.hash_of(0)


def test_rows_are_sorted_and_filtered(sweep_page):
    page = sweep_page
    assert "of 696" in page.locator("#rows-status").inner_text()
    value = page.locator("#rows th", has_text="value")
    page.locator("#rows th button", has_text="value").click()
    assert value.get_attribute("aria-sort") == "ascending"
    up = [float(text) for text in cells_of(page, "value")]
    assert up == sorted(up)
    page.locator("#rows th button", has_text="value").click()
    assert value.get_attribute("aria-sort") == "descending"
    down = [float(text) for text in cells_of(page, "value")]
    assert down == sorted(down, reverse=True)
    assert down[0] > up[-1]
    page.locator("#rows th button", has_text="value").click()
    assert value.get_attribute("aria-sort") == "none"

    page.select_option("#filter-attack", label="RMIA")
    assert set(cells_of(page, "attack")) == {"RMIA"}
    page.select_option("#filter-epsilon", label="∞")
    page.select_option("#filter-variant", label="clip")
    page.fill("#words", "class three")
    expect(page.locator("#rows tbody tr")).to_have_count(3)
    assert set(cells_of(page, "group")) == {"class three"}
    assert page.locator("#rows-status").inner_text() == "rows 1–3 of 3 (of 696)"
    with page.expect_download() as saved:
        page.click("text=Save these rows as CSV")
    lines = Path(saved.value.path()).read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("variant,epsilon,accounted,defense,attack,view,group,metric,value,low,high")
    page.fill("#words", "nothing is called this")
    page.wait_for_selector("text=No row fits")
    page.click("#filters >> text=Clear")
    assert "of 696" in page.locator("#rows-status").inner_text()


def test_the_table_is_turned_page_by_page(sweep_page):
    page = sweep_page
    first = cells_of(page, "value")
    page.click("button[aria-label='Next page']")
    assert page.locator("#rows-status").inner_text() == "rows 26–50 of 696"
    assert cells_of(page, "value") != first
    page.click("button[aria-label='Last page']")
    assert page.locator("#rows-status").inner_text() == "rows 676–696 of 696"
    assert page.locator("button[aria-label='Next page']").is_disabled()
    page.select_option("#page-size", "100")
    page.click("button[aria-label='First page']")
    assert page.locator("#rows tbody tr").count() == 100


def test_a_slider_moves_between_the_true_and_the_recovered_picture(sweep_page):
    page = sweep_page
    stack = page.locator("#wall .stack").nth(1)
    assert (
        stack.evaluate("(one) => getComputedStyle(one.querySelector('img + img')).clipPath") == "inset(0px 0px 0px 50%)"
    )
    page.locator("#wall input").nth(1).fill("80")
    assert (
        stack.evaluate("(one) => getComputedStyle(one.querySelector('img + img')).clipPath") == "inset(0px 0px 0px 80%)"
    )
    assert page.locator("#wall input").nth(1).get_attribute("aria-valuetext") == "80% true, 20% recovered"
    page.fill("#cut-all", "10")
    cuts = page.locator("#wall .stack").evaluate_all("(all) => all.map((one) => one.style.getPropertyValue('--cut'))")
    assert cuts == ["10%"] * 4
    captions = page.locator("#wall figcaption").all_inner_texts()
    assert captions[:2] == ["failed, label “zero” found", "21 dB, label “one” missed"]
    shown = page.locator("#wall img").first.get_attribute("src")
    page.select_option("#wall-choice", label="clip, ε = 8")
    assert page.locator("#wall img").first.get_attribute("src") != shown
    assert made.hash_of(1) in page.locator("#gallery-controls").inner_text()


def test_the_most_exposed_examples_are_those_of_the_chosen_cell_and_attack(sweep_page):
    page = sweep_page
    page.select_option("#exposed-cell", label="clip, ε = 8")
    found = page.locator("#exposed-wall figcaption").all_inner_texts()
    assert found[0] == "9 · no. 10 “zero”, canary"
    assert found[1] == "8 · no. 11 “one”"
    page.select_option("#exposed-cell", label="secagg, ε = 1")
    assert page.locator("#exposed-wall figcaption").first.inner_text() == "9 · no. 40 “zero”, canary"
    assert made.hash_of(4) in page.locator("#exposed-controls").inner_text()


def test_a_study_is_plotted_against_the_fields_of_its_points(opened, study_path):
    page = opened(study_path)
    assert page.evaluate(f"{LAYOUT}.xaxis.ticktext") == ["none", "dp, ε 1", "dp, ε 64"]
    assert page.locator("#plot-x option").all_inner_texts() == ["setting", "attack", "defence", "ε", "attacker"]
    page.select_option("#plot-x", label="ε")
    assert page.evaluate(f"{LAYOUT}.xaxis.ticktext") == ["1", "64", "∞"]
    page.select_option("#plot-metric", label="SSIM")
    assert names(page) == ["DLG", "iDLG", "blind (mean image)"]
    assert page.locator("#wall-choice option").count() == 6
    assert "δ = 1e-05" in page.locator("#guarantees").inner_text()
    assert page.locator("#exposed").count() == 0
    assert "Squares" not in page.locator("#question").inner_text()
    assert "squares of whole numbers" in page.locator("#question").inner_text()  # the study's own words
