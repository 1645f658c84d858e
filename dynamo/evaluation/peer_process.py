"""Another engine, in a process of its own and, where asked, under a Python of its own: this file runs as a
script and needs nothing of this project.

Its argument is a JSON object: "engine", "model", "threads", "context", "max_new_tokens", "end_ids" and the
sampling options. It writes one JSON object a line: first {"flags": ..} or {"error": ..}; then, for every line
{"prompt": ids, "seed": n} that it reads, {"tokens": ids, "seconds": of each}. The first token's seconds are
those of the pass that reads the prompt. Tokens end with one of `end_ids`, which counts, or with the length.

For a line {"prompts": [ids, ..], "seeds": [n, ..], "max_new_tokens": n} llama.cpp reads one prompt after the
other, then answers all in the same passes: {"tokens": [ids, ..], "seconds": of those passes}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

Generate = Callable[[list[int], int], Iterator[int]]  # (prompt, seed) -> tokens
# (prompts, seeds, most new tokens) -> the answer.
Together = Callable[[list[list[int]], list[int], int], dict[str, Any]]
Made = tuple[Generate, Together | None, dict[str, Any]]  # the last are the flags


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
    flags = {"library": f"llama-cpp-python {llama_cpp.__version__}", **sampling, "penalty": penalty}
    return generate, llama_cpp_together(llama_cpp, model, spec, sampling), flags


def llama_cpp_together(library: Any, model: Any, spec: dict[str, Any], sampling: dict[str, Any]) -> Together:
    """Of one model, all texts as sequences of one context: a token of each goes into every pass."""

    def together(prompts: list[list[int]], seeds: list[int], most: int) -> dict[str, Any]:
        longest, samplers = max(map(len, prompts)), []
        settings = library.llama_context_default_params()
        settings.n_threads = settings.n_threads_batch = spec["threads"]
        settings.n_seq_max = len(prompts)
        settings.n_ctx = len(prompts) * 256 * -(-(longest + most) // 256)
        settings.n_batch = max(longest, len(prompts))
        context = library.llama_init_from_model(model.model, settings)
        batch = library.llama_batch_init(settings.n_batch, 0, 1)

        def decode(entries: list[tuple[int, int, int, bool]]) -> None:  # token, position, row, whether drawn
            batch.n_tokens = len(entries)
            for place, (token, position, row, drawn) in enumerate(entries):
                batch.token[place], batch.pos[place], batch.logits[place] = token, position, drawn
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            if failed := library.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode said {failed} to {len(entries)} tokens")

        def draw(row: int, place: int) -> None:
            texts[row].append(library.llama_sampler_sample(samplers[row].sampler, context, place))

        texts = [list(prompt) for prompt in prompts]
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            model.set_seed(seed)
            samplers.append(model._init_sampler(**sampling))  # what `generate` draws with
            last = len(prompt) - 1
            decode([(token, position, row, position == last) for position, token in enumerate(prompt)])
            draw(row, last)
        before, rows = time.perf_counter(), range(len(prompts))
        while rows := [
            row for row in rows
            if texts[row][-1] not in spec["end_ids"] and len(texts[row]) < len(prompts[row]) + most
        ]:  # fmt: skip
            decode([(texts[row][-1], len(texts[row]) - 1, row, True) for row in rows])
            for place, row in enumerate(rows):
                draw(row, place)
        seconds = time.perf_counter() - before
        library.llama_batch_free(batch)
        library.llama_free(context)
        tokens = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
        return {"tokens": tokens, "seconds": seconds}

    return together


def ctranslate2(spec: dict[str, Any]) -> Made:
    import ctranslate2

    class Converter(ctranslate2.converters.TransformersConverter):
        """Reads models without a tokenizer, too: a token's word is its id. Gives a GPT-NeoX the names that
        the converter knows and transformers 5 changed.
        """

        def load_model(self, *args: Any, **settings: Any) -> Any:
            model = super().load_model(*args, **settings)
            self.words = [str(token) for token in range(model.config.vocab_size)]
            if model.config.model_type == "gpt_neox" and not hasattr(model.config, "rotary_pct"):
                model.config.rotary_pct = model.config.rope_parameters["partial_rotary_factor"]
                model.embed_out = model.get_output_embeddings()
            return model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            vocabulary = dict(zip(self.words, range(len(self.words)), strict=True))
            return SimpleNamespace(
                get_vocab=lambda: vocabulary, **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "0")
            )

    compute = spec["compute"]
    with tempfile.TemporaryDirectory() as folder:  # the model is read whole
        Converter(spec["model"]).convert(folder, quantization=compute, force=True)
        model = ctranslate2.Generator(folder, compute_type=compute, intra_threads=spec["threads"])
    sampling = {"sampling_topk": spec["top_k"], "sampling_temperature": spec["temperature"] or 1.0,
                "repetition_penalty": spec["repetition_penalty"]}  # fmt: skip
    if spec["temperature"] == 0:
        sampling["sampling_topk"] = 1

    def generate(prompt: list[int], seed: int) -> Iterator[int]:
        ctranslate2.set_random_seed(seed)
        steps = model.generate_tokens(
            [str(token) for token in prompt],
            max_length=spec["max_new_tokens"],
            end_token=spec["end_ids"],
            **sampling,
        )
        return (step.token_id for step in steps)

    flags = {"library": f"ctranslate2 {ctranslate2.__version__}", "compute": compute, **sampling}
    return generate, None, flags


ENGINES = {"llama.cpp": llama_cpp, "ctranslate2": ctranslate2}


def reply(generate: Generate, spec: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
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
        generate, together, flags = ENGINES[spec["engine"]](spec)
        answer({"flags": flags})
        for line in sys.stdin:
            asked = json.loads(line)
            if "prompts" in asked:
                answer(together(asked["prompts"], asked["seeds"], asked["max_new_tokens"]))
            else:
                answer(reply(generate, spec, asked))
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"})


if __name__ == "__main__":
    main()
