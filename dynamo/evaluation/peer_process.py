"""Another engine, in a process of its own and, where asked, under a Python of its own: this file runs as a
script and needs nothing of this project.

Its argument is a JSON object: "engine", "model", "threads", "context", "max_new_tokens", "end_ids" and the
sampling options. It writes one JSON object a line: first {"flags": ..} or {"error": ..}; then, for every line
{"prompt": ids, "seed": n} that it reads, {"tokens": ids, "seconds": of each}. The first token's seconds are
those of the pass that reads the prompt. Tokens end with one of `end_ids`, which counts, or with the length.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Made = tuple[Callable[[list[int], int], Iterator[int]], dict[str, Any]]  # (prompt, seed) -> tokens; flags


def llama_cpp(spec: dict[str, Any]) -> Made:
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=spec["model"],
        n_ctx=spec["context"],
        n_threads=spec["threads"],
        n_threads_batch=spec["threads"],
        verbose=False,
    )
    sampling = {"top_k": spec["top_k"], "top_p": 1.0, "min_p": 0.0, "temp": spec["temperature"],
                "repeat_penalty": spec["repetition_penalty"]}  # fmt: skip

    def generate(prompt: list[int], seed: int) -> Iterator[int]:
        model.reset()  # or it would keep what this prompt has in common with the last
        model.set_seed(seed)
        return model.generate(prompt, **sampling)

    penalty = "divides logits, of the last 64 tokens"
    return generate, {"library": f"llama-cpp-python {llama_cpp.__version__}", **sampling, "penalty": penalty}


def ctranslate2(spec: dict[str, Any]) -> Made:
    import ctranslate2

    compute = spec["compute"]
    with tempfile.TemporaryDirectory() as folder:  # the model is read whole
        converter = ctranslate2.converters.TransformersConverter(spec["model"])
        converter.convert(folder, quantization=compute, force=True)
        model = ctranslate2.Generator(folder, compute_type=compute, intra_threads=spec["threads"])
        words = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))
    sampling = {"sampling_topk": spec["top_k"], "sampling_temperature": spec["temperature"] or 1.0,
                "repetition_penalty": spec["repetition_penalty"]}  # fmt: skip
    if spec["temperature"] == 0:
        sampling["sampling_topk"] = 1

    def generate(prompt: list[int], seed: int) -> Iterator[int]:
        ctranslate2.set_random_seed(seed)
        steps = model.generate_tokens(
            [words[token] for token in prompt],
            max_length=spec["max_new_tokens"],
            end_token=spec["end_ids"],
            **sampling,
        )
        return (step.token_id for step in steps)

    return generate, {"library": f"ctranslate2 {ctranslate2.__version__}", "compute": compute, **sampling}


ENGINES = {"llama.cpp": llama_cpp, "ctranslate2": ctranslate2}


def reply(generate: Callable[[list[int], int], Iterator[int]], spec: dict[str, Any], asked: dict) -> dict:
    tokens: list[int] = []
    seconds: list[float] = []
    before = time.perf_counter()
    for token in generate(asked["prompt"], asked["seed"]):
        now = time.perf_counter()
        tokens.append(int(token))
        seconds.append(now - before)
        before = now
        if token in spec["end_ids"] or len(tokens) == spec["max_new_tokens"]:
            break
    return {"tokens": tokens, "seconds": seconds}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    spec = json.loads(sys.argv[1])
    try:
        generate, flags = ENGINES[spec["engine"]](spec)
        answer({"flags": flags})
        for line in sys.stdin:
            answer(reply(generate, spec, json.loads(line)))
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"})


if __name__ == "__main__":
    main()
