"""The page with a Models tab on tiny pairs of its own, and what a visitor does there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import tiny_base, tiny_dynamo
from pages import launched

from dynamo.common.statistics import Estimate
from dynamo.evaluation.few_bits import Difference
from dynamo.loading import load
from dynamo.training.trainer import save_model
from dynamo.ui import ModelManager, ModelPair, build_demo

TINY = Estimate(0.001, 0.0, 0.002)
PHONE = {"width": 375, "height": 812}


@dataclass
class Models:
    """folder: of the models: "first", "<b>second", "untuned", "measured" and "stock", which has no heads."""

    url: str
    folder: Path
    manager: ModelManager

    def load_for_all(self, name: str) -> None:
        """Loads a pair as any visitor may, and waits for it."""
        for _ in self.manager.load(str(self.folder / name)):
            pass
        assert self.manager.loaded == str(self.folder / name)


def stage(pair):
    return replace(ModelPair.from_pair(pair), chat="untuned" not in pair.name)


@contextmanager
def serve_models(folder: Path, tokenizer) -> Iterator[Models]:
    for seed, name in enumerate(("first", "<b>second", "untuned", "measured"), 1):
        save_model(tiny_dynamo(seed=seed), tokenizer, folder / name)
    save_model(tiny_base(), tokenizer, folder / "stock")
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
            yield Models(url, folder, made[0])


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
    """Writes the name and presses Load. Gradio writes a tab's boxes again in its first frames, and later on a
    busy machine; no visitor presses Load beside another name than he wrote."""
    box = page.locator("#model-name textarea, #model-name input").first
    drawn = "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
    page.evaluate(drawn)
    while box.input_value() != name:
        box.fill(name)
        page.evaluate(drawn)
    page.get_by_role("button", name="Load", exact=True).click()


def pick(page, name):
    page.locator("#model-switch input").click()
    page.get_by_role("option", name=name).click()
