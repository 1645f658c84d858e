"""The About tab holds for any pair, and its example for programs is one that works."""

import ast
import html
import inspect
import re

from fakes import scripted_pair

from dynamo.ui.api import Programs
from dynamo.ui.compare.service import PageService
from dynamo.ui.components import ASSETS

ABOUT = (ASSETS / "about" / "about.html").read_text(encoding="utf-8")
EXAMPLE = html.unescape(re.search(r"<pre[^>]*><code>(.*?)</code></pre>", ABOUT, re.DOTALL).group(1))


def test_the_example_calls_functions_that_exist():
    """The example calls functions that exist with parameters that they take."""
    offered = {function.__name__: function for function in Programs(PageService(scripted_pair())).functions()}
    calls = [node for node in ast.walk(ast.parse(EXAMPLE)) if isinstance(node, ast.Call)]
    called = set()
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if "api_name" in given:
            name = ast.literal_eval(given.pop("api_name")).removeprefix("/")
            inspect.signature(offered[name]).bind(*call.args, **given)
            called.add(name)
    assert called == set(offered)


def test_the_example_reads_keys_that_the_answers_have():
    programs = Programs(PageService(scripted_pair()))
    *_, answer = programs.generate("Hello")
    *_, both = programs.compare("Hello")
    *_, rows = programs.threshold_sweep("Hello", [0.3])
    for key in ("text", "tokens_per_forward"):
        assert f'answer["{key}"]' in EXAMPLE and key in answer
    for key in ("base", "dynamo", "wall_clock_ratio"):
        assert f'both["{key}"]' in EXAMPLE and key in both
    for key in ("threshold", "passes", "text"):
        assert f'rows[-1]["{key}"]' in EXAMPLE and key in rows[-1]


def test_every_link_leaves_the_page_safely():
    links = re.findall(r"<a\s[^>]*>", ABOUT)
    assert links
    for link in links:
        assert 'target="_blank"' in link and 'rel="noopener"' in link
        assert re.search(r'href="https://', link)
