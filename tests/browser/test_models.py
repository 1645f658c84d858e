"""The Models tab in a real browser: what is offered, a model without heads, and the page after a swap."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from models_page import PHONE, at_models, loads, pick, settled
from pages import assert_accessible

from dynamo.loading import EMBEDDED, KNOWN
from dynamo.ui.models import manager


@pytest.fixture
def another_page(open_page):
    """In a window of its own: pages of one window share their few connections."""
    return partial(open_page, locale="en-US")


def test_models_that_do_not_fit_are_greyed_with_the_reason(open_page, models):
    """And axe finds nothing, and on a phone all tabs show and nothing scrolls sideways."""
    page = at_models(open_page, f"{models.url}?__theme=light")
    large = page.locator(".dm-picker-row", has_text="pythia-12b")
    assert large.locator("input").is_disabled() and "8.0 GB are free" in large.inner_text()
    small = page.locator(".dm-picker-row", has_text="pythia-70m")
    small.click()
    page.wait_for_function(
        "document.querySelector('#model-name :is(textarea, input)').value === 'EleutherAI/pythia-70m'"
    )
    assert_accessible(page, dark=True)
    page.set_viewport_size(PHONE)
    assert page.get_by_role("tab", name="About").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_model_without_heads_completes_and_offers_training(open_page, models):
    """A model without heads completes and offers training and a failure is told."""
    page = at_models(open_page, models.url)
    loads(page, "/nowhere/<img src=x onerror=alert(1)>")
    page.get_by_role("alert").filter(has_text="expected 'embedded', a model folder").wait_for()
    loads(page, str(models.folder / "stock"))
    page.get_by_role("heading", name="stock has no token heads yet").wait_for()
    page.get_by_role("button", name="Complete it").click()
    page.get_by_text("One token per forward pass").last.wait_for()
    estimate = page.locator("#training-estimate")
    estimate.get_by_text("An estimate, from a short trial of this machine").wait_for()
    assert "GB are free" in estimate.inner_text() and page.locator("#training-dialogues").count() == 0
    page.get_by_role("button", name="Train heads").click()
    page.get_by_role("alert").filter(has_text="name a text file, or upload one").wait_for()
    assert_accessible(page)


def test_after_a_swap_the_page_is_about_the_new_pair_also_for_latecomers(open_page, another_page, models):
    page = at_models(open_page, models.url)
    loads(page, str(models.folder / "<b>second"))
    page.get_by_text("it answers in Compare from the next run on").wait_for()
    page.locator("#models-loaded").get_by_text("<b>second").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#generate").click()
    page.locator("#pane-dynamo .dm-chunk").first.wait_for()
    late = at_models(another_page, models.url)
    late.locator("#models-loaded").get_by_text("<b>second").wait_for()
    late.get_by_role("tab", name="About").click()
    late.get_by_text("DynaMo checkpoint").wait_for()


def test_after_a_swap_examples_memory_and_speed_are_the_new_pairs(open_page, models):
    """After a swap the examples are what the new pair can do and its memory and speed are told."""
    page = at_models(open_page, models.url)
    page.get_by_role("radio", name="8bit").check()
    loads(page, str(models.folder / "untuned"))
    page.get_by_text("it answers in Compare from the next run on").wait_for()
    table = page.locator(".dm-footprint")
    table.get_by_text("Loaded in 8bit").wait_for()
    assert "As float32 (estimate)" in table.inner_text() and table.get_by_text("after an answer").count() == 2
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Code", exact=True).click()
    page.get_by_label("Text to complete (this model").wait_for()
    page.wait_for_function(
        "document.querySelector('#prompt :is(textarea, input)').value.startsWith('def fibonacci')"
    )
    assert page.get_by_role("button", name="Restaurant").count() == 0
    page.locator("#generate").click()
    page.get_by_text("Same prompt, settings and seed").first.wait_for()
    page.get_by_role("tab", name="Models").click()
    table.get_by_text("after an answer").first.wait_for(state="detached")
    assert table.get_by_text("not measured").count() == 2
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_pair_is_picked_in_the_head_and_named_there(open_page, models):
    page = open_page(models.url)
    settled(page)
    pick(page, str(models.folder / "<b>second"))
    page.locator("#switch-status").get_by_text("is loaded for every visitor").wait_for()
    page.get_by_role("tab", name="Models").click()  # it is drawn only then
    page.locator("#models-loaded").get_by_text(str(models.folder / "<b>second")).wait_for()
    assert page.locator("#model-switch input").input_value() == str(models.folder / "<b>second")
    assert "parameters" in page.locator("#model").inner_text()
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_another_pair_that_is_picked_while_one_is_loaded_does_not_stay_in_the_list(
    open_page, models, monkeypatch
):
    """It was ignored without a word, and stood there as if it had been loaded."""
    page, go = open_page(models.url), threading.Event()
    settled(page)
    chosen = page.locator("#model-switch input")
    loaded = chosen.input_value()
    other = next(
        str(models.folder / name) for name in ("<b>second", "first") if str(models.folder / name) != loaded
    )
    resolve = manager.resolve
    monkeypatch.setattr(manager, "resolve", lambda *asked: go.wait(120) and resolve(*asked))
    try:
        pick(page, other)
        page.locator("#switch-status").get_by_text("Looking for").wait_for()
        pick(page, KNOWN[EMBEDDED].title)
        page.wait_for_function(
            "(name) => document.querySelector('#model-switch input').value === name", arg=other
        )
    finally:
        go.set()
    page.locator("#switch-status").get_by_text("is loaded for every visitor").wait_for()
    assert chosen.input_value() == other


def test_who_leaves_the_list_of_pairs_as_it_is_loads_nothing(open_page, models):
    """Gradio's list fires "input" on its way out; the loaded pair was read again, for every visitor."""
    page = open_page(models.url)
    settled(page)
    page.locator("#model-switch input").click()
    with page.expect_request("**/queue/join*"):
        page.locator("#model-switch input").blur()
    page.wait_for_timeout(1000)  # what would be said of a load comes right behind
    assert "loaded" not in page.locator("#switch-status").inner_text()


def test_fewer_bits_are_offered_where_they_were_measured_and_loaded(open_page, models):
    page = at_models(open_page, models.url)
    table, bits = page.locator("#model-few-bits table"), page.get_by_role("radio", name="int4", exact=True)
    page.locator("#model-name textarea, #model-name input").first.fill(str(models.folder / "first"))
    table.wait_for(state="detached")
    bits.wait_for(state="detached")
    page.locator("#model-name textarea, #model-name input").first.fill(str(models.folder / "measured"))
    table.get_by_text("+0.10 %").wait_for()
    for weights, kept in (("int4", "in 4 bits"), ("as they are", "parameters + ")):
        page.get_by_role("radio", name=weights, exact=True).check(force=True)
        page.get_by_role("button", name="Load", exact=True).click()
        table.get_by_text(f"{weights} (loaded)").wait_for()
        page.locator("#model").get_by_text(kept).wait_for()
        assert ("in 4 bits" in page.locator("#model").inner_text()) == (weights == "int4")
        if weights == "int4":
            assert_accessible(page)
            page.set_viewport_size(PHONE)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_a_visitor_wrote_stays_when_the_pair_is_swapped(open_page, models):
    page = open_page(models.url)
    typed = page.locator("#prompt textarea, #prompt input").first
    typed.fill("My own words")
    page.get_by_role("tab", name="Models").click()
    settled(page)  # before, the name in the box may be replaced once more
    loads(page, str(models.folder / "first"))
    page.get_by_text("it answers in Compare from the next run on").wait_for()
    page.locator("#models-loaded").get_by_text("first").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Explain", exact=True).wait_for()
    assert typed.input_value() == "My own words"
