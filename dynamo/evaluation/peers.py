"""Other engines as lanes of the benchmark, on the same weights: llama.cpp and CTranslate2.

Each runs in its own process (`peer_process`), under this Python or under another that has the engine
installed, and waits while other lanes run. Sampling has the same top-k, temperature and strength of penalty;
llama.cpp and CTranslate2 divide logits by the penalty, not probabilities. An engine that is not installed, or
has no file to run, is left out with the reason.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dynamo.decoding.engine import end_of_text_ids
from dynamo.evaluation import peer_process
from dynamo.evaluation.subprocess_lane import LaneLost
from dynamo.loading import Pair
from dynamo.model.gguf_cache import gguf_of
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

LANES = {  # lane: its engine, and in what numbers CTranslate2 computes
    "llamacpp": ("llama.cpp", ""),
    "ctranslate2": ("ctranslate2", "float32"),
    "ctranslate2_int8": ("ctranslate2", "int8"),
}
PEERS = tuple(dict.fromkeys(engine for engine, _ in LANES.values()))
TOGETHER = ("llamacpp",)  # that can answer several prompts in the same passes
INSTALL = {"llama.cpp": "llama-cpp-python", "ctranslate2": "ctranslate2"}
SECONDS = 600.0  # that starting an engine, conversion included, or one reply may take


class PeerLane:
    """A lane in a process that speaks `peer_process`'s lines; `flags` are what it said of itself. Close it.

    Raises LaneLost where it cannot start.
    """

    def __init__(self, command: Sequence[str], seconds: float = SECONDS):
        self._seconds = seconds
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
            )
        except OSError as error:
            raise LaneLost(str(error)) from None
        self.flags: dict[str, Any] = self._answer()["flags"]

    def __call__(self, prompt: Sequence[int], seed: int) -> RunCounts:
        """Raises LaneLost."""
        said = self._ask({"prompt": list(prompt), "seed": seed})
        tokens, (first, *later) = said["tokens"], said["seconds"]
        return RunCounts(
            tokens=tokens,
            orders=[1] * len(tokens),
            decode_tokens=len(later),
            decode_passes=len(later),
            decode_seconds=sum(later),
            prefill_seconds=first,
        )

    def together(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int
    ) -> tuple[int, float]:
        """Answers several prompts in the same passes: tokens and seconds of those after the prompts' own.

        Only the lanes of `TOGETHER` can. Raises LaneLost.
        """
        asked = {"prompts": [list(prompt) for prompt in prompts], "seeds": list(seeds)}
        said = self._ask({**asked, "max_new_tokens": max_new_tokens})
        return sum(len(tokens) - 1 for tokens in said["tokens"]), said["seconds"]

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # it has ended; its answer, or that there is none, says why
            print(json.dumps(line), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        late = threading.Event()
        timer = threading.Timer(self._seconds, lambda: (late.set(), self._process.kill()))
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        said = json.loads(line) if line else {}
        if "error" in said or not said:
            self.close()
            raise LaneLost(
                said.get("error")
                or (f"no reply within {self._seconds:.0f} s" if late.is_set() else "its process ended")
            )
        return said

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def start(
    asked: Sequence[str],
    pair: Pair,
    options: SamplingOptions,
    max_new_tokens: int,
    context: int,
    threads: int,
    lost: dict[str, str],
    python: str = sys.executable,
    model: Path | None = None,
) -> dict[str, PeerLane]:
    """Lanes of the engines `asked` for; the reasons of those that cannot run go to `lost`.

    context: tokens of the longest prompt with its reply; python: that has the engines; model: a GGUF file for
    llama.cpp, by default the one that the pair's base was read from.
    """
    lanes = {}
    with TemporaryDirectory() as folder:  # an engine reads it whole when it starts
        if "ctranslate2" in asked:
            pair.base.save_pretrained(folder)
        for name, (engine, compute) in LANES.items():
            if engine not in asked:
                continue
            file = (model or gguf_of(Path(pair.base.name_or_path))) if engine == "llama.cpp" else folder
            if file is None or not Path(file).exists():
                lost[name] = "the pair's base was not read from a GGUF file (--peer-model gives one)"
                continue
            spec = {
                "engine": engine,
                "model": str(file),
                "compute": compute,
                "threads": threads,
                "context": context,
                "max_new_tokens": max_new_tokens,
                "end_ids": sorted(end_of_text_ids(pair.base, pair.tokenizer)),
                "top_k": options.top_k,
                "temperature": options.temperature,
                "repetition_penalty": options.repetition_penalty,
            }
            try:
                # -P: modules beside that file have names of the standard library's.
                lanes[name] = PeerLane([python, "-P", peer_process.__file__, json.dumps(spec)])
            except LaneLost as error:
                missing = "ModuleNotFoundError" in str(error)
                advice = f"; pip install {INSTALL[engine]}, or --peer-python with one that has it"
                lost[name] = f"{error}{advice if missing else ''}"
    return lanes
