"""Shared fixtures: a tiny random model, a byte tokenizer, dialogues of our own. Everything is offline.

Large libraries are imported where they are used: with several workers this file is first read by the process
that only hands out the tests, and they wait for it.
"""

from __future__ import annotations

import os

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["OMP_WAIT_POLICY"] = "passive"  # a waiting thread would take a core that another process needs

import functools
import gc
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from hub import Hub, serving
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from dynamo.model import DynamoForCausalLM

TESTS = Path(__file__).parent
WORKER_BYTES = 5 * 2**29  # of memory, with a browser and a server
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ..; nothing where there is one process
# How long an example takes says something of the machine alone, and the same examples come with every run;
# `pytest --hypothesis-profile=search` looks for others.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same everywhere", settings.get_profile("search"), derandomize=True)
settings.load_profile("same everywhere")


# Files that start servers, browsers or processes, compile the largest loops, load models of some size, or are
# about other libraries; the longest first. Workers begin with them, so that none is left alone with one at
# the end, and `make check` does without them.
COMPILING = ("kernels/test_passes.py", "kernels/test_looped.py", "kernels/test_products.py")
SLOW = (
    "model/test_lookalike.py",
    *COMPILING,
    "common/test_distributed.py",
    "pipelines/test_kills.py",
    "browser",
    "pipelines",
    "reproduction",
    "spaces",
    "trust/test_hostile_page.py",
    "ui/test_zerogpu_app.py",
    "ui/test_training_job.py",
    "ui/test_load.py",
    "ui/test_faults.py",
    "ui/test_rates.py",
    "ui/test_limits.py",
    "ui/test_programs.py",
    "ui/test_guard_of_a_page.py",
    "ui/test_votes.py",
    "ui/test_votes_faults.py",
    "kernels/test_kernels_absent.py",
    "loading/test_devices.py",
    "loading/test_hub_downloads.py",
    "commands",
    "evaluation",
    "cooccurrence/test_external.py",
    "data/test_corpus.py",
    "common/test_full_disk.py",
    "common/test_memory.py",
    "decoding/test_stock.py",
    "decoding/test_pretended_gpus.py",
    "model/test_transformers.py",
    "model/test_peft.py",
    "model/test_gguf.py",
)


def pytest_xdist_auto_num_workers(config) -> int:
    """As many as cores, and one more where tests wait for servers and browsers, if memory allows."""
    cores = os.cpu_count() or 1
    if config.option.markexpr == "not slow":
        return cores
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores + 1, memory // WORKER_BYTES))


class Scheduling(LoadFileScheduling):
    """A worker takes whole files; one takes all those that start processes by `processes`, whose server then
    imports everything once, and one those that compile the largest loops, while others wait for browsers."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if starts_processes(file):
            return "processes"
        return "compiling" if file.endswith(COMPILING) else file


@functools.cache
def starts_processes(file: str) -> bool:
    return "\nfrom processes import " in (TESTS.parent / file).read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)


@functools.cache
def rank_of(path: Path) -> int:
    """A file's place in `SLOW`, behind all where it is not there."""
    places = {TESTS / place: rank for rank, place in enumerate(SLOW)}
    return next((places[each] for each in (path, *path.parents) if each in places), len(SLOW))


def pytest_ignore_collect(collection_path, config) -> bool | None:
    """`make check` does not even import the slow files, which need the page's libraries."""
    left_out = config.option.markexpr == "not slow" and rank_of(collection_path) < len(SLOW)
    return left_out or None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: rank_of(item.path))
    for item in items:
        if rank_of(item.path) < len(SLOW):
            item.add_marker("slow")
        if TESTS / "browser" in item.path.parents:  # the closing line counts reruns
            item.add_marker(pytest.mark.flaky(reruns=2))


def pytest_collection_finish():
    """What was imported stays to the end: no later collection of garbage need look at it."""
    gc.collect()
    gc.freeze()


PATIENCE = 120  # seconds for what is sure to come, on a machine that is busy with other things

DIALOGUES = [
    [
        {"role": "user", "content": "Please book a table for two in San Jose."},
        {"role": "assistant", "content": "At what time would you like the table?"},
        {"role": "user", "content": "At half past seven, please."},
        {"role": "assistant", "content": "Your table for two is booked at half past seven."},
    ],
    [
        {"role": "user", "content": "What is the weather in Oakland tomorrow?"},
        {"role": "assistant", "content": "It will be 21 degrees with a 10 percent chance of rain."},
    ],
]


def tiny_config(**changes) -> GPTNeoXConfig:
    from transformers import GPTNeoXConfig

    fields = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 640,
        "bos_token_id": 0,
        "eos_token_id": 3,
        "initializer_range": 0.2,
    }
    return GPTNeoXConfig(**{**fields, **changes})


def tiny_base(seed: int = 0, **changes) -> GPTNeoXForCausalLM:
    import torch
    from transformers import GPTNeoXForCausalLM

    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(tiny_config(**changes)).eval()


def tiny_dynamo(heads: int = 3, seed: int = 0, **changes) -> DynamoForCausalLM:
    """Weights are large enough for logits to differ clearly; `changes` are of the heads or of the base."""
    from dynamo.model import DynamoForCausalLM

    known = inspect.signature(DynamoForCausalLM.from_base).parameters
    of_heads = {name: changes.pop(name) for name in list(changes) if name in known}
    return DynamoForCausalLM.from_base(tiny_base(seed, **changes), num_token_heads=heads, **of_heads).eval()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """One thread before each test and its fixtures, as a command may have left another number behind.

    Tiny tensors gain nothing from a second one and lose much where cores are busy.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state per process; a later run of another precision needs a new one."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer of 300 ids, trained on the dialogues above."""
    from dynamo.data.schema_guided import train_tokenizer

    return train_tokenizer(iter(DIALOGUES), vocab_size=300, max_length=640)


@pytest.fixture(scope="session")
def documents(tokenizer):
    """The dialogues' ids, as training reads them."""
    import numpy as np

    from dynamo.data import text

    return [np.asarray(text.encode_turns(tokenizer, turns).ids) for turns in DIALOGUES]


@pytest.fixture(scope="session")
def base():
    return tiny_base()


@pytest.fixture(scope="session")
def dynamo_model():
    return tiny_dynamo()


def be_patient_with_hubs(patch: pytest.MonkeyPatch) -> None:
    """A hub of these tests answers for sure, and a busy machine may take its time."""
    patch.setattr("dynamo.loading.downloads.HUB_PROBE_SECONDS", float(PATIENCE))
    patch.setattr("dynamo.loading.fetched.LISTING_SECONDS", float(PATIENCE))
    patch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", PATIENCE)
    patch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE)


@pytest.fixture(scope="session", autouse=True)
def patient_gradio():
    """Gradio takes a page that does not answer within three seconds for one that nobody can reach, and looks
    for a port where pages of other workers look too."""
    with pytest.MonkeyPatch.context() as patch:
        if "gradio.networking" in sys.modules:  # of no use to tests without a page
            patch.setattr(
                "gradio.networking.url_ok", lambda url: httpx.head(url, timeout=PATIENCE).is_success
            )
            patch.setattr(
                "gradio.http_server.INITIAL_PORT_VALUE",
                7860 + 100 * int(WORKER[2:] or 0),
            )
        yield


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that one may write to, and an empty cache."""
    be_patient_with_hubs(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", "token")
    with serving(Hub(token="token")) as hub:
        yield hub


@pytest.fixture
def at_hub(hub, monkeypatch):
    """The hub that names are looked up at, which has not been away."""
    import huggingface_hub

    from dynamo.loading import downloads

    monkeypatch.setattr(downloads, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=hub.url))
    monkeypatch.setattr(downloads, "_away", {})
    return hub


@pytest.fixture
def api(hub):
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=hub.url)
