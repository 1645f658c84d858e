"""How a link to the page looks elsewhere: it showed "Gradio" and a picture of Gradio's."""

from __future__ import annotations

import re

import pytest
from fakes import scripted_pair
from PIL import Image
from starlette.testclient import TestClient

from dynamo.ui import build_demo, launch_options
from dynamo.ui.layout import DESCRIPTION, PREVIEW, TITLE
from dynamo.ui.server.preview import SIZE


@pytest.fixture(scope="module")
def app():
    demo = build_demo(scripted_pair())
    options = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
    app, _, _ = demo.launch(**options, **launch_options())
    yield app
    demo.close()


def tags(page: str) -> dict[str, list[str]]:
    found = re.findall(
        r'<meta[^>]*(?:property|name)="((?:og|twitter):[^"]*|description)"\s+content="([^"]*)"', page
    )
    return {name: [value for each, value in found if each == name] for name, _ in found}


@pytest.mark.parametrize("root_path", ["", "/below/it"])
@pytest.mark.parametrize("proxied", [{}, {"x-forwarded-host": 'a"<b>.example', "x-forwarded-proto": "https"}])
def test_the_page_names_itself_and_its_picture(app, monkeypatch, root_path, proxied):
    monkeypatch.setattr(app, "root_path", root_path)
    client = TestClient(app, base_url="http://dynamo.example")
    page = client.get("/", headers=proxied).text
    host = "http://dynamo.example" if not proxied else "https://"
    found = tags(page)
    assert found["og:title"] == [TITLE] and page.count(f"<title>{TITLE}</title>") == 1
    assert found["og:description"] == found["description"] == [DESCRIPTION]
    assert all(
        address.startswith(host) and "<" not in address for address in found["og:image"] + found["og:url"]
    )
    assert [address.endswith(f"{root_path}/preview.png") for address in found["og:image"]] == [True]
    assert "Gradio" not in str(found) and "githubusercontent" not in page
    assert "window.gradio_config" in page and page.rstrip().endswith("</html>")


def test_the_picture_is_there_and_as_large_as_said(app):
    client = TestClient(app)
    answer = client.get("/preview.png")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.content == PREVIEW.read_bytes()
    with Image.open(PREVIEW) as picture:
        assert picture.size == SIZE
    assert client.head("/").status_code == 200
