"""Whether token heads gain from states of three depths, as EAGLE-3's draft model has them, over the stem's.

Two short runs of SmolLM2's heads, equal but for one thing: the second adds to what each head reads a linear
map, zero at first, of the states a third and two thirds of the way up, each divided by its root mean square.
It does not pay (docs/smollm2.md), so the package has no such heads: this script trains them by patching it.

    python tools/trial_of_depths.py --data TALKS.jsonl --output docs/measurements/smollm2-heads-trials.jsonl
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo import loading
from dynamo.data.instructions import encode, read_examples
from dynamo.data.reading import Reading
from dynamo.model import DynamoForCausalLM, architecture_of
from dynamo.training import head_losses, stem_states
from dynamo.training.head_trainer import HeadTrainer, StateRows
from dynamo.training.options import TrainingOptions
from dynamo.training.stem_states import StateBatch, StemStates

CONVERSATIONS, HELD_OUT = 200, Path("docs/measurements/smollm2-held-out.jsonl")
OPTIONS = TrainingOptions(
    steps=60,
    batch_size=8,
    head_lr=1e-3,
    warmup=0.1,
    heads_only=True,
    evaluate_every=0,
    mixed_precision="bf16",
)


@dataclass(frozen=True)
class DeepBatch(StateBatch):
    """lower: (tokens, 2 hidden), the states of two lower depths."""

    lower: Tensor


class DeepStates(StemStates):
    """States of three depths, end to end, the stem's last."""

    def _open(self) -> None:
        hidden = self._settings["hidden_size"]
        self._files["states"] = "tokens", np.float16, (3 * hidden,)
        super()._open()

    def add(self, model, conversations, progress=False):
        layers, run_base = architecture_of(model).layers(model.backbone), stem_states.run_base
        seen = {}
        depths = [len(layers) // 3, 2 * len(layers) // 3]
        hooks = [
            layers[depth].register_forward_pre_hook(
                lambda _, args, depth=depth: seen.update({depth: args[0]})
            )
            for depth in depths
        ]

        def run(*arguments):
            found = run_base(*arguments)
            lower = [F.rms_norm(seen[depth], seen[depth].shape[-1:]) for depth in depths]
            return replace(found, stem=torch.cat([*lower, found.stem], -1))

        with patch.object(stem_states, "run_base", run):
            super().add(model, conversations, progress)
        for hook in hooks:
            hook.remove()

    def batch(self, places, device="cpu"):
        found = super().batch(places, device)
        hidden = self._settings["hidden_size"]
        lower, stem = found.states.split([2 * hidden, hidden], -1)
        return DeepBatch(**{**vars(found), "states": stem.contiguous()}, lower=lower)


def trained(model: DynamoForCausalLM, states: DeepStates, rows: list[StateRows], is_deep: bool) -> dict:
    """What a run of heads ends at, as the training log has it."""
    run_layers, hidden = head_losses._run_layers, model.config.hidden_size
    for head in model.token_heads if is_deep else ():
        head.lower = nn.Linear(2 * hidden, hidden, bias=False)
        nn.init.zeros_(head.lower.weight)

    def run(model, head, batch, *others):
        if is_deep:
            batch = replace(batch, states=batch.states + head.lower(batch.lower))
        return run_layers(model, head, batch, *others)

    with TemporaryDirectory() as folder, patch.object(head_losses, "_run_layers", run):
        HeadTrainer(model, rows[0], OPTIONS, folder, 0.5, 0.25, rows[1], overlap_weight=5.0).run()
        lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    last = next(row for row in map(json.loads, reversed(lines)) if "measured" in row)
    return {
        "trial": "three depths" if is_deep else "stem alone",
        **{k: last[k] for k in ("step", "tokens", "measured")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="conversations that converse wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to add the two results to")
    arguments = parser.parse_args()
    base, tokenizer, _ = loading.load_model("smollm2/base", device="cpu", dtype=torch.float32)
    found = [
        encode(list(islice(read_examples([file], Reading()), count)), tokenizer, 1152)
        for file, count in ((arguments.data, CONVERSATIONS), (HELD_OUT, None))
    ]
    with TemporaryDirectory() as folder:
        results = []
        for is_deep in (False, True):
            torch.manual_seed(0)
            model = DynamoForCausalLM.from_base(
                base, num_token_heads=3, head_init="copy", correlator_rank=384
            )
            states = DeepStates(folder, model.eval(), "bf16")
            for each in found:
                states.add(model, each, progress=True)
            rows = [StateRows(states, states.places(each)) for each in found]
            results.append(trained(model, states, rows, is_deep))
    with arguments.output.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()
