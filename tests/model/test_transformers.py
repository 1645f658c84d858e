"""The model as transformers uses it, by the library's own classes."""

from __future__ import annotations

import copy

import pytest
import torch
from bases import BASES, ids, new_base, with_heads
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments, pipeline

from dynamo import DynamoConfig, DynamoForCausalLM

LENGTHS = (9, 30, 17, 24)


@pytest.fixture(params=BASES)
def base(request):
    return new_base(request.param)


@pytest.fixture
def model(base):
    return with_heads(base)


def rows() -> list[dict[str, torch.Tensor]]:
    """Texts of unequal length, part of each without labels."""
    texts = [ids(length, seed=length) for length in LENGTHS]
    labels = [text.clone() for text in texts]
    for each in labels:
        each[: len(each) // 3] = -100
    return [
        {"input_ids": text, "labels": label, "attention_mask": torch.ones_like(text)}
        for text, label in zip(texts, labels, strict=True)
    ]


def padded(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 2, "labels": -100, "attention_mask": 0}
    return {
        name: torch.nn.utils.rnn.pad_sequence([each[name] for each in features], True, value)
        for name, value in fill.items()
    }


def trainer(model, folder, collator=padded, **arguments) -> Trainer:
    """One step of plain gradient descent over all rows, so that weights tell the gradient."""
    settings = {"max_steps": 1, "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd"}
    settings |= {
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    settings |= {"save_strategy": "no", "logging_steps": 1} | arguments
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=collator,
    )


def summed_nats(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every head's, from the logits of all positions."""
    logits = model(batch["input_ids"], batch["attention_mask"], return_logits=True).head_logits
    return torch.stack(
        [
            cross_entropy(each[:, :-n].flatten(0, 1), batch["labels"][:, n:].flatten(), reduction="sum")
            for n, each in enumerate(logits, start=1)
        ]
    )


def assert_same_weights(model, other) -> None:
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-6, rtol=1e-4, msg=name)


# -- Trainer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 8], ids=["heads", "correlator"])
def test_trainer_takes_the_same_step_however_rows_are_divided(base, rank, tmp_path):
    start = with_heads(base, correlator_rank=rank)
    expected = copy.deepcopy(start)
    targets = sum((row["labels"][1:] != -100).sum() for row in rows())
    if not rank:
        loss = summed_nats(expected, padded(rows())).sum() / targets
    else:
        loss = expected(**padded(rows()), num_items_in_batch=targets).loss
    loss.backward()
    with torch.no_grad():
        for weight in expected.parameters():
            weight -= 0.1 * weight.grad
    for size in (4, 2, 1):
        model = copy.deepcopy(start)
        run = trainer(
            model, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size
        )
        assert run.train().training_loss == pytest.approx(loss.item(), rel=1e-5)
        assert_same_weights(model, expected)


def test_texts_laid_end_to_end_are_trained_on_as_those_padded(model, tmp_path):
    """By transformers' collator; a head's target never is in the next text."""
    end_to_end = copy.deepcopy(model)
    trainer(model, tmp_path, per_device_train_batch_size=4).train()
    flat = trainer(end_to_end, tmp_path, DataCollatorWithFlattening(), per_device_train_batch_size=4)
    flat.train()
    assert_same_weights(end_to_end, model)


def test_gradient_checkpointing_changes_no_gradient(model, tmp_path):
    again = copy.deepcopy(model)
    trainer(model, tmp_path, per_device_train_batch_size=4).train()
    calls = []
    layer = again.token_heads[0].layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer(again, tmp_path, per_device_train_batch_size=4, gradient_checkpointing=True).train()
    assert len(calls) == 2, "the heads' layers run again on the way back, too"
    assert_same_weights(again, model)


def test_metrics_see_the_first_heads_logits(model, tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    run = trainer(model, tmp_path, per_device_eval_batch_size=2)
    run.compute_metrics = metrics
    result = run.evaluate()
    assert seen == [(4, 30, 97)] and 0 <= result["eval_right"] <= 1
    halves = [padded(rows()[:2]), padded(rows()[2:])]
    with torch.no_grad():
        losses = [summed_nats(model, half).sum() / (half["labels"][:, 1:] != -100).sum() for half in halves]
    assert result["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_label_smoothing_would_train_the_first_head_alone(model, tmp_path):
    run = trainer(model, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing_factor"):
        run.train()


# -- forward ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_hidden_states_and_attentions_are_the_stock_models(base, model, cached):
    ask = {"output_hidden_states": True, "output_attentions": True, "use_cache": cached}
    for each in (base, model):
        each.set_attn_implementation("eager")
    with torch.no_grad():
        expected, output = base(ids(2, 9), **ask), model(ids(2, 9), **ask)
    for name in ("hidden_states", "attentions"):
        ours, theirs = output[name], expected[name]
        assert len(ours) == len(theirs) == {"hidden_states": 4, "attentions": 3}[name]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
    model.config.output_hidden_states = True
    assert len(model(ids(2, 9)).hidden_states) == 4
    assert not any(layer._forward_pre_hooks for layer in model.backbone.base_model.layers)


def test_a_tuple_begins_as_a_stock_models(base, model):
    text = ids(2, 9)
    stock = base(text, labels=text, return_dict=False, use_cache=False)
    loss, logits, head_losses, head_logits = model(text, labels=text, return_dict=False)
    assert loss == head_losses.sum() and head_losses[0].item() == pytest.approx(stock[0].item(), rel=1e-5)
    torch.testing.assert_close(logits, stock[1])
    assert torch.equal(logits, head_logits[0])
    ours = model(text, use_cache=True, return_dict=False)
    assert len(ours) == len(base(text, use_cache=True, return_dict=False)) == 2


@pytest.mark.parametrize("name", ["lables", "cache_position", "output_router_logit"])
def test_an_unknown_argument_is_refused(model, name):
    with pytest.raises(ValueError, match=rf"{name}"):
        model(ids(1, 5), **{name: torch.ones(1, 5)})
    with pytest.raises(ValueError, match=rf"{name}"):
        model.generate(ids(1, 5), **{name: torch.ones(1, 5)})
    assert model(ids(1, 5), **{name: None}).logits is not None


def test_a_loss_made_of_hidden_states_is_refused(model):
    """As trl 1.16 makes one: it puts this in the place of `forward`, and asks for the base model."""
    forward = model.forward

    def fused(self, *args, fused_lm_head=False, labels=None, **kwargs):
        if not fused_lm_head:
            return forward(*args, **kwargs)
        return self.get_output_embeddings()(self.base_model(*args, **kwargs).last_hidden_state)

    model.forward = fused.__get__(model)
    with pytest.raises(AttributeError, match="SFTTrainer"):
        model.train()(input_ids=ids(1, 5), labels=ids(1, 5), fused_lm_head=True)
    with pytest.raises(AttributeError, match="SFTTrainer"):
        _ = model.get_decoder()(ids(1, 5)).last_hidden_state
    assert not hasattr(model(ids(1, 5)), "last_hidden_state")


# -- generate ---------------------------------------------------------------------------------------------

STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.8},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 8},
    "shown": {"output_hidden_states": True, "output_scores": True, "output_logits": True},
}


@pytest.mark.parametrize("settings", STRATEGIES.values(), ids=STRATEGIES)
def test_generate_writes_what_the_stock_model_writes(base, model, settings):
    if "assistant_early_exit" in settings and base.config.model_type == "gpt_neox":
        return  # transformers 5.23 knows no early exit of it
    rows = 1 if "prompt_lookup_num_tokens" in settings or "assistant_early_exit" in settings else 2
    prompt, mask = ids(rows, 7), torch.ones(rows, 7, dtype=torch.long)
    if rows > 1:
        prompt[0, :3], mask[0, :3] = 2, 0  # padded on the left
    outputs = []
    for each in (base, model):
        torch.manual_seed(3)
        ask = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, **settings}
        outputs.append(each.generate(prompt, return_dict_in_generate=True, **ask))
    stock, ours = outputs
    assert torch.equal(ours.sequences, stock.sequences)
    for name in ("scores", "logits"):
        for one, other in zip(ours.get(name) or (), stock.get(name) or (), strict=True):
            torch.testing.assert_close(one, other)
    assert [len(each) for each in ours.get("hidden_states") or ()] == [
        len(each) for each in stock.get("hidden_states") or ()
    ]


def test_assisted_generation_works_both_ways(base, model):
    prompt = ids(1, 7)
    ask = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    expected = base.generate(prompt, **ask)
    assert torch.equal(model.generate(prompt, assistant_model=base, **ask), expected)
    assert torch.equal(base.generate(prompt, assistant_model=model, **ask), expected)


def test_a_pipeline_writes_text(tokenizer):
    model = with_heads(new_base("llama", vocab_size=300, eos_token_id=None))
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    written = writer("Please book a table", max_new_tokens=5, do_sample=False)
    prompt = tokenizer("Please book a table", return_tensors="pt")["input_ids"]
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False
    )
    assert written[0]["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


# -- vocabulary -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True], ids=["shared output", "own outputs"])
@pytest.mark.parametrize("size", [105, 90])
def test_a_resized_vocabulary_is_every_heads(base, own, size, tmp_path):
    model = with_heads(base, own_output_embedding=own)
    text = ids(2, 9).clamp(max=89)
    model.count_tokens(torch.tensor([96, 3, 96]))
    with torch.no_grad():
        before = model(text).head_logits
        embeddings = model.resize_token_embeddings(size)
        assert embeddings is model.get_input_embeddings() and len(embeddings.weight) == size
        after = model(text).head_logits
        kept = min(size, 97)
        assert after.shape[-1] == size and torch.equal(after[..., :kept], before[..., :kept])
        model.save_pretrained(tmp_path)
        again = DynamoForCausalLM.from_pretrained(tmp_path)
        assert again.config.vocab_size == size and torch.equal(again(text).head_logits, after)
        assert again.tokens_by_frequency.sort().values.tolist() == list(range(size))
        assert again.tokens_by_frequency[:2].tolist() == ([96, 3] if size > 96 else [3, 0])
        assert torch.equal(model.to_base()(text).logits, after[0])
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == base.config.tie_word_embeddings
    new = text.clone()
    new[:, -1] = size - 1
    again.train()(new, labels=new).loss.backward()
    assert all(weight.grad is not None for weight in again.parameters())


def test_a_vocabulary_is_padded_to_a_multiple(model):
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 128 == model(ids(1, 4)).head_logits.shape[-1]
    assert isinstance(model.config, DynamoConfig)
