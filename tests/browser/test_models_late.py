"""A page that learns late, on a slow line or a busy machine, which pair is loaded: what visitors did in the
meantime stays."""

from __future__ import annotations

import threading

import pytest
from models_page import at_models, loads, pick, settled


@pytest.fixture
def open_held(open_page, models):
    """Opens the page; what it asks on opening is held back, in a list, until the event is set."""

    def open_held():
        held, let_go = [], threading.Event()

        def hold(page):
            page.route(
                "**/gradio_api/run/**",
                lambda route: route.continue_() if let_go.is_set() else held.append(route),
            )

        page = open_page(models.url, before=hold)
        while not held:
            page.wait_for_timeout(50)
        return page, held, let_go

    return open_held


@pytest.mark.parametrize("written_name", ["someone/else", "the name that the page was built for"])
def test_a_name_that_is_being_written_stays(open_held, models, written_name):
    """On a busy machine the name of the pair before was what Load then loaded."""
    written_name = written_name if "/" in written_name else str(models.folder / "first")
    models.load_for_all("untuned")
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


def test_a_pair_that_is_picked_while_the_page_opens_is_loaded(open_page, models):
    """What the page asked on opening was answered after the pick, and undid it before it was read."""
    late, let_go = [], threading.Event()

    def answer(route):
        if let_go.is_set():
            route.continue_()
        else:
            late.append((route, route.fetch()))

    page = open_page(models.url, before=lambda page: page.route("**/gradio_api/run/**", answer))
    while not late:
        page.wait_for_timeout(50)
    loaded = page.locator("#model-switch input").input_value()
    other = next(
        str(models.folder / name) for name in ("<b>second", "first") if str(models.folder / name) != loaded
    )
    pick(page, other)
    page.wait_for_timeout(300)
    let_go.set()
    for route, response in late:
        route.fulfill(response=response)
    page.get_by_role("tab", name="Models").click()
    page.locator("#models-loaded").get_by_text(other).wait_for()
    assert page.locator("#model-switch input").input_value() == other


def test_weights_that_are_picked_while_a_name_is_looked_up_stay(open_page, models):
    """The answer brought the weights that were picked when the page asked, and Load then loaded those."""
    models.load_for_all("first")
    page, late = at_models(open_page, models.url), []

    def answer(route):
        response = route.fetch()
        if not late and '"choices"' in response.text():
            late.append((route, response))
        else:
            route.fulfill(response=response)

    page.route("**/gradio_api/run/**", answer)
    page.locator("#model-name textarea, #model-name input").first.fill(str(models.folder / "untuned"))
    while not late:
        page.wait_for_timeout(50)
    eight = page.get_by_role("radio", name="8bit")
    eight.check()
    ((route, response),) = late
    route.fulfill(response=response)
    page.wait_for_timeout(300)
    assert eight.is_checked()


def test_what_the_tab_asked_when_it_was_opened_does_not_undo_a_load(open_page, models):
    """The pair before stood there as loaded, for as long as the tab was looked at."""
    models.load_for_all("untuned")
    page, late = open_page(models.url), []
    settled(page)

    def answer(route):
        response = route.fetch()
        if late or "Loaded: " not in response.text():
            route.fulfill(response=response)
        else:
            late.append((route, response))

    page.route("**/gradio_api/run/**", answer)
    page.get_by_role("tab", name="Models").click()
    loads(page, str(models.folder / "first"))
    shown = page.locator("#models-loaded")
    shown.get_by_text("first").wait_for()
    ((route, response),) = late
    assert "untuned" in response.text()
    with page.expect_response("**/gradio_api/run/**"):  # what is asked then
        route.fulfill(response=response)
        page.wait_for_timeout(300)
    shown.get_by_text("first").wait_for()


def test_a_pair_that_came_back_is_not_sent_to_a_page_that_was_built_for_it(open_page, models):
    for name in ("<b>second", "first"):
        models.load_for_all(name)
    answers = []

    def listen(page):
        page.on("response", lambda response: "/gradio_api/run/" in response.url and answers.append(response))

    page = open_page(models.url, before=listen)
    settled(page)
    assert answers and not any('"samples"' in answer.text() for answer in answers)
    page.get_by_role("button", name="Explain", exact=True).wait_for()


def test_an_answer_about_the_pair_before_that_comes_late_does_not_stay(open_page, models):
    """The page asks about the pair when it opens; on a slow line the visitor may load another one by then."""
    models.load_for_all("<b>second")
    late = []

    def answer(route):
        response = route.fetch()
        if '"samples"' in response.text() and not late:
            late.append((route, response))
        else:
            route.fulfill(response=response)

    page = open_page(models.url, before=lambda page: page.route("**/gradio_api/run/**", answer))
    while not late:
        page.wait_for_timeout(50)
    page.get_by_role("tab", name="Models").click()
    loads(page, str(models.folder / "untuned"))
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


def test_an_example_that_is_picked_while_the_page_opens_stays(open_held, models):
    models.load_for_all("first")
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


def test_what_a_visitor_writes_while_the_page_learns_of_another_pair_stays(open_held, models):
    """The page asks about the pair when it opens; the answers come only after the visitor has written."""
    models.load_for_all("untuned")
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
