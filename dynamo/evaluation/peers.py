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
        with contextlib.suppress(OSError):  # it has ended; its answer, or that there is none, says why
            print(json.dumps({"prompt": list(prompt), "seed": seed}), file=self._process.stdin, flush=True)
        said = self._answer()
        tokens, (first, *later) = said["tokens"], said["seconds"]
        return RunCounts(
            tokens=tokens,
            orders=[1] * len(tokens),
            decode_tokens=len(later),
            decode_passes=len(later),
            decode_seconds=sum(later),
            prefill_seconds=first,
        )

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
    folder = Path(pair.base.name_or_path)
    for name, (engine, compute) in LANES.items():
        if engine not in asked:
            continue
        file = (model or gguf_of(folder)) if engine == "llama.cpp" else folder
        if file is None or not file.exists():
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
