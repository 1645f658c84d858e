"""Chats with the page's service, without a page."""

from __future__ import annotations

from dataclasses import replace

from dynamo.sampling.options import SamplingOptions
from dynamo.ui import ModelPair
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.settings import Settings

SETTINGS = Settings(SamplingOptions(), 96, 3)


def talk(service: PageService, *prompts: str) -> Chat:
    """A chat of several turns, its values sent to and fro as a browser does."""
    base = dynamo = ""
    for prompt in prompts:
        *_, view = service.answer(Chat.read(base, dynamo), prompt, SETTINGS)
        base, dynamo = view.base, view.dynamo
    return Chat.read(base, dynamo)


def stage(pair):
    return replace(ModelPair.from_pair(pair), report={"of": pair.name})
