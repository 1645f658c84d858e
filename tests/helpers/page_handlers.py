"""The page's handlers, called as Gradio calls them."""

from __future__ import annotations

from fakes import scripted_pair

from dynamo.ui.compare.handlers import Handlers
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.votes import VoteBook

SETTINGS = {
    "threshold": 0.5,
    "exact": False,
    "mask_strength": 1,
    "temperature": 0.7,
    "top_k": 50.0,
    "repetition_penalty": 1.1,
    "max_order": 3.0,
    "max_new_tokens": 96.0,
    "seed": 0,
    "adaptive": True,
    "blur": True,
}


def handlers(pair=None, votes=None) -> Handlers:
    service = PageService(pair or scripted_pair())
    return Handlers(service, list(SETTINGS), VoteBook(votes) if votes else None)


def send(
    wired: Handlers, prompt="hello", chat=("", ""), replacing=False, blind=False, opponent="loop", **changes
):
    values = {**SETTINGS, **changes}.values()
    return list(wired.send(prompt, replacing, blind, opponent, *chat, *values))
