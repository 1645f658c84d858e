"""A first head in lm-evaluation-harness against its own log-probabilities; runs where `lm-eval` is installed.

It is no requirement of this project: see docs/benchmarks.md.
"""

import json

import pytest
import torch
from conftest import DIALOGUES, tiny_dynamo

from dynamo.training.trainer import save_model

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

ITEMS = [
    {"query": turns[0]["content"], "choices": [turns[1]["content"], "No."], "gold": 0} for turns in DIALOGUES
] + [{"query": "At half past", "choices": [" seven", " rain"], "gold": n % 2} for n in range(3)]
TASK = """task: local_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: " "
metric_list:
  - metric: acc
"""


def log_probability(model, tokenizer, query, choice):
    """By the DynaMo model itself: its first head's log-probability of the choice after the query."""
    context = tokenizer(query, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{query} {choice}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        log_p = model(torch.tensor([whole])).head_logits[0, 0].double().log_softmax(-1)
    return sum(float(log_p[t - 1, whole[t]]) for t in range(len(context), len(whole)))


def test_the_harness_scores_an_exported_first_head_as_the_head_itself(tmp_path, tokenizer, monkeypatch):
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = tiny_dynamo(heads=3)
    save_model(model.to_pythia(), tokenizer, tmp_path / "export")
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "items.jsonl"))
    result = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "export"), "dtype": "float32"},
        tasks=["local_choices"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        device="cpu",
        batch_size=1,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(result["samples"]["local_choices"], key=lambda sample: sample["doc_id"])
    correct = 0
    for item, sample in zip(ITEMS, samples, strict=True):
        expected = [log_probability(model, tokenizer, item["query"], choice) for choice in item["choices"]]
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(expected, rel=1e-4)
        correct += expected.index(max(expected)) == item["gold"]
    assert result["results"]["local_choices"]["acc,none"] == pytest.approx(correct / len(ITEMS))
