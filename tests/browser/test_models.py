"""The Models tab in a real browser: what is offered, a model without heads, and the page after a swap."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest
from conftest import tiny_base, tiny_dynamo
from pages import assert_accessible, launched

from dynamo.common.statistics import Estimate
from dynamo.evaluation.few_bits import Difference
from dynamo.loading import EMBEDDED, KNOWN, load
from dynamo.training.trainer import save_model
from dynamo.ui import ModelManager, ModelPair, build_demo
from dynamo.ui.models import manager

TINY = Estimate(0.001, 0.0, 0.002)
PHONE = {"width": 375, "height": 812}


def stage(pair):
    return replace(ModelPair.from_pair(pair), chat="untuned" not in pair.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("models")
    save_model(tiny_dynamo(seed=1), tokenizer, root / "first")
    save_model(tiny_dynamo(seed=2), tokenizer, root / "<b>second")
    save_model(tiny_dynamo(seed=3), tokenizer, root / "untuned")
    save_model(tiny_dynamo(seed=4), tokenizer, root / "measured")
    save_model(tiny_base(), tokenizer, root / "stock")
    return root


@pytest.fixture(scope="module")
def served(folder):
    """The page's address, and the manager of its models."""
    pair, made = load(str(folder / "first"), device="cpu"), []

    def models(service):
        made.append(
            ModelManager(
                service,
                stage=stage,
                names=(str(folder / "<b>second"), str(folder / "first")),
                any_model=True,
                training_folder=folder / "trained",
                few_bits={str(folder / "measured"): [Difference("int4", 1, TINY, TINY)]},
                device="cpu",
            )
        )
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo.ui.models.manager.available_memory", lambda device: 8 * 10**9)
        with launched(build_demo(stage(pair), models=models)) as url:
            yield url, made[0]


@pytest.fixture
def url(served):
    return served[0]


@pytest.fixture
def load_for_all(served, folder):
    """Loads a pair as any visitor may, and waits for it."""

    def load_for_all(name):
        for _ in served[1].load(str(folder / name)):
            pass
        assert served[1].loaded == str(folder / name)

    return load_for_all


@pytest.fixture
def another_page(open_page):
    """In a window of its own: pages of one window share their few connections."""
    return partial(open_page, locale="en-US")


def at_models(open_page, url, **options):
    page = open_page(url, **options)
    page.get_by_role("tab", name="Models").click()
    page.locator(".dm-picker-row").first.wait_for()
    settled(page)
    return page


def settled(page):
    """Waits until the page has learned which pair is loaded, as it asks when it opens."""
    page.wait_for_function("window.dynamoBus?.opened")


def loads(page, name):
    # Up to the first frame of a tab Gradio writes its boxes again; no visitor types before he sees them.
    page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    page.locator("#model-name textarea, #model-name input").first.fill(name)
    page.get_by_role("button", name="Load", exact=True).click()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_models_that_do_not_fit_are_greyed_with_the_reason(open_page, url, theme):
    """Models that do not fit are greyed with the reason and axe finds nothing."""
    page = at_models(open_page, f"{url}?__theme={theme}")
    large = page.locator(".dm-picker-row", has_text="pythia-12b")
    assert large.locator("input").is_disabled() and "8.0 GB are free" in large.inner_text()
    small = page.locator(".dm-picker-row", has_text="pythia-70m")
    small.click()
    page.wait_for_function(
        "document.querySelector('#model-name :is(textarea, input)').value === 'EleutherAI/pythia-70m'"
    )
    assert_accessible(page)


def test_on_a_phone_all_tabs_show_and_nothing_scrolls_sideways(open_page, url):
    page = at_models(open_page, url, viewport=PHONE)
    assert page.get_by_role("tab", name="About").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_model_without_heads_completes_and_offers_training(open_page, url, folder):
    """A model without heads completes and offers training and a failure is told."""
    page = at_models(open_page, url)
    loads(page, "/nowhere/<img src=x onerror=alert(1)>")
    page.get_by_role("alert").filter(has_text="expected 'embedded', a model folder").wait_for()
    loads(page, str(folder / "stock"))
    page.get_by_role("heading", name="stock has no token heads yet").wait_for()
    page.get_by_role("button", name="Complete it").click()
    page.get_by_text("One token per forward pass").last.wait_for()
    estimate = page.locator("#training-estimate")
    estimate.get_by_text("An estimate, from a short trial of this machine").wait_for()
    assert "GB are free" in estimate.inner_text() and page.locator("#training-dialogues").count() == 0
    page.get_by_role("button", name="Train heads").click()
    page.get_by_role("alert").filter(has_text="name a text file, or upload one").wait_for()
    assert_accessible(page)


def test_after_a_swap_the_page_is_about_the_new_pair_also_for_latecomers(
    open_page, another_page, url, folder
):
    page = at_models(open_page, url)
    loads(page, str(folder / "<b>second"))
    page.get_by_text("it answers in Compare from the next run on").wait_for()
    page.locator("#models-loaded").get_by_text("<b>second").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#generate").click()
    page.locator("#pane-dynamo .dm-chunk").first.wait_for()
    late = at_models(another_page, url)
    late.locator("#models-loaded").get_by_text("<b>second").wait_for()
    late.get_by_role("tab", name="About").click()
    late.get_by_text("DynaMo checkpoint").wait_for()


def test_after_a_swap_examples_memory_and_speed_are_the_new_pairs(open_page, url, folder):
    """After a swap the examples are what the new pair can do and its memory and speed are told."""
    page = at_models(open_page, url)
    page.get_by_role("radio", name="8bit").check()
    loads(page, str(folder / "untuned"))
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


@pytest.fixture
def open_held(open_page, url):
    """Opens the page; what it asks on opening is held back, in a list, until the event is set."""

    def open_held():
        held, let_go = [], threading.Event()

        def hold(page):
            page.route(
                "**/gradio_api/run/**",
                lambda route: route.continue_() if let_go.is_set() else held.append(route),
            )

        page = open_page(url, before=hold)
        while not held:
            page.wait_for_timeout(50)
        return page, held, let_go

    return open_held


@pytest.mark.parametrize("written_name", ["someone/else", "the name that the page was built for"])
def test_a_name_that_is_being_written_stays(open_held, load_for_all, folder, written_name):
    """On a busy machine the name of the pair before was what Load then loaded."""
    written_name = written_name if "/" in written_name else str(folder / "first")
    load_for_all("untuned")
    page, held, written = open_held()
    page.get_by_role("tab", name="Models").click()
    name = page.locator("#model-name textarea, #model-name input").first
    name.fill(written_name)
    written.set()
    for route in held:
        route.continue_()
    page.locator("#models-loaded").get_by_text("untuned").first.wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Code", exact=True).wait_for()
    page.wait_for_timeout(300)  # what would overwrite it comes right behind
    assert name.input_value() == written_name


def pick(page, name):
    page.locator("#model-switch input").click()
    page.get_by_role("option", name=name).click()


def test_a_pair_is_picked_in_the_head_and_named_there(open_page, url, folder):
    page = open_page(url)
    settled(page)
    pick(page, str(folder / "<b>second"))
    page.locator("#switch-status").get_by_text("is loaded for every visitor").wait_for()
    page.get_by_role("tab", name="Models").click()  # it is drawn only then
    page.locator("#models-loaded").get_by_text(str(folder / "<b>second")).wait_for()
    assert page.locator("#model-switch input").input_value() == str(folder / "<b>second")
    assert "parameters" in page.locator("#model").inner_text()
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_pair_that_is_picked_while_the_page_opens_is_loaded(open_page, url, folder):
    """What the page asked on opening was answered after the pick, and undid it before it was read."""
    late, let_go = [], threading.Event()

    def answer(route):
        if let_go.is_set():
            route.continue_()
        else:
            late.append((route, route.fetch()))

    page = open_page(url, before=lambda page: page.route("**/gradio_api/run/**", answer))
    while not late:
        page.wait_for_timeout(50)
    loaded = page.locator("#model-switch input").input_value()
    other = next(str(folder / name) for name in ("<b>second", "first") if str(folder / name) != loaded)
    pick(page, other)
    page.wait_for_timeout(300)
    let_go.set()
    for route, response in late:
        route.fulfill(response=response)
    page.get_by_role("tab", name="Models").click()
    page.locator("#models-loaded").get_by_text(other).wait_for()
    assert page.locator("#model-switch input").input_value() == other


def test_another_pair_that_is_picked_while_one_is_loaded_does_not_stay_in_the_list(
    open_page, url, folder, monkeypatch
):
    """It was ignored without a word, and stood there as if it had been loaded."""
    page, go = open_page(url), threading.Event()
    settled(page)
    chosen = page.locator("#model-switch input")
    loaded = chosen.input_value()
    other = next(str(folder / name) for name in ("<b>second", "first") if str(folder / name) != loaded)
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


def test_who_leaves_the_list_of_pairs_as_it_is_loads_nothing(open_page, url, folder):
    """Gradio's list fires "input" on its way out; the loaded pair was read again, for every visitor."""
    page = open_page(url)
    settled(page)
    page.locator("#model-switch input").click()
    with page.expect_request("**/queue/join*"):
        page.locator("#model-switch input").blur()
    page.wait_for_timeout(1000)  # what would be said of a load comes right behind
    assert "loaded" not in page.locator("#switch-status").inner_text()


def test_a_pair_that_came_back_is_not_sent_to_a_page_that_was_built_for_it(open_page, url, load_for_all):
    for name in ("<b>second", "first"):
        load_for_all(name)
    answers = []

    def listen(page):
        page.on("response", lambda response: "/gradio_api/run/" in response.url and answers.append(response))

    page = open_page(url, before=listen)
    settled(page)
    assert answers and not any('"samples"' in answer.text() for answer in answers)
    page.get_by_role("button", name="Explain", exact=True).wait_for()


def test_an_answer_about_the_pair_before_that_comes_late_does_not_stay(open_page, url, folder, load_for_all):
    """The page asks about the pair when it opens; on a slow line the visitor may load another one by then."""
    load_for_all("<b>second")
    late = []

    def answer(route):
        response = route.fetch()
        if '"samples"' in response.text() and not late:
            late.append((route, response))
        else:
            route.fulfill(response=response)

    page = open_page(url, before=lambda page: page.route("**/gradio_api/run/**", answer))
    while not late:
        page.wait_for_timeout(50)
    page.get_by_role("tab", name="Models").click()
    loads(page, str(folder / "untuned"))
    page.get_by_text("it answers in Compare from the next run on").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Code", exact=True).wait_for()
    ((route, response),) = late
    asked = route.request.post_data_json

    def asks_again(other):
        """The next request of the same chain of events."""
        its = other.request.post_data_json if "/gradio_api/run/" in other.url else None
        return its and its["trigger_id"] == asked["trigger_id"] and its["fn_index"] != asked["fn_index"]

    with page.expect_response(asks_again):
        route.fulfill(response=response)
    page.get_by_role("button", name="Code", exact=True).wait_for()
    page.get_by_label("Text to complete (this model").wait_for()
    assert page.get_by_role("button", name="Explain", exact=True).count() == 0


def test_fewer_bits_are_offered_where_they_were_measured_and_loaded(open_page, url, folder):
    page = at_models(open_page, url)
    table, bits = page.locator("#model-few-bits table"), page.get_by_role("radio", name="int4", exact=True)
    page.locator("#model-name textarea, #model-name input").first.fill(str(folder / "first"))
    table.wait_for(state="detached")
    bits.wait_for(state="detached")
    page.locator("#model-name textarea, #model-name input").first.fill(str(folder / "measured"))
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


def test_what_a_visitor_wrote_stays_when_the_pair_is_swapped(open_page, url, folder):
    page = open_page(url)
    typed = page.locator("#prompt textarea, #prompt input").first
    typed.fill("My own words")
    page.get_by_role("tab", name="Models").click()
    loads(page, str(folder / "first"))
    page.get_by_text("it answers in Compare from the next run on").wait_for()
    page.locator("#models-loaded").get_by_text("first").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Explain", exact=True).wait_for()
    assert typed.input_value() == "My own words"


def test_an_example_that_is_picked_while_the_page_opens_stays(open_held, load_for_all):
    load_for_all("first")
    page, held, opened = open_held()
    opened.set()
    page.get_by_role("button", name="Recipe", exact=True).click()
    box = page.locator("#prompt textarea, #prompt input").first
    while box.input_value() != "How do I make pancakes?":
        page.wait_for_timeout(50)
    for route in held:
        route.continue_()
    page.wait_for_timeout(1500)  # what would overwrite it comes right behind
    assert box.input_value() == "How do I make pancakes?"


def test_what_a_visitor_writes_while_the_page_learns_of_another_pair_stays(open_held, load_for_all):
    """The page asks about the pair when it opens; the answers come only after the visitor has written."""
    load_for_all("untuned")
    (page, held, written), answered = open_held(), []
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda request: answered.append(request))
    typed = page.locator("#prompt textarea, #prompt input").first
    typed.fill("My own words")
    written.set()
    for route in held:
        route.continue_()
    page.get_by_label("Text to complete (this model").wait_for()
    page.get_by_role("button", name="Code", exact=True).wait_for()
    while not {route.request for route in held} <= {*answered}:  # one of them might overwrite it
        page.wait_for_timeout(50)
    page.wait_for_timeout(300)  # it is put on the screen right after
    assert typed.input_value() == "My own words"
