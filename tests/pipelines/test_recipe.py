"""The whole path on a look-alike: a tiny Pythia with a raw tokenizer, a local hub, a local Space."""

import copy
import functools
import json
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import DIALOGUES, tiny_base
from huggingface_hub import HfApi
from tokenizers import Tokenizer

from dynamo import loading
from dynamo.commands import main, run_command, space
from dynamo.data import text
from dynamo.loading import downloads
from dynamo.loading.sizes import pythia_shape
from dynamo.model import DynamoForCausalLM
from dynamo.model.architectures import model_shape
from dynamo.pipelines import estimates, recipe
from dynamo.pipelines.recipe import RecipeRun, stages
from dynamo.pipelines.stages import Stage, run_stages
from dynamo.training.options import FinetuningRun, TrainingOptions, TrainingRun

TRAIN = "--steps 3 --batch-size 2 --block-size 16 --mixed-precision no --evaluate-every 0 --accumulation 1"
FINETUNE = "--steps 2 --batch-size 2 --max-length 64"


def raw_tokenizer(tokenizer):
    """As Pythia's: no chat markers, no template, ids to spare in the model."""
    plain = copy.deepcopy(tokenizer)
    fields = json.loads(plain.backend_tokenizer.to_str())
    fields["added_tokens"] = [each for each in fields["added_tokens"] if each["content"] == text.END_OF_TEXT]
    plain = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(fields)), eos_token=text.END_OF_TEXT,
        bos_token=text.END_OF_TEXT,
    )  # fmt: skip
    assert not text.has_chat_template(plain)
    return plain


@pytest.fixture
def ground(tmp_path, tokenizer):
    """A base as the hub has it, texts, instructions."""
    base = tiny_base(vocab_size=304)
    base.save_pretrained(tmp_path / "pythia")
    raw_tokenizer(tokenizer).save_pretrained(tmp_path / "pythia")
    lines = [json.dumps({"text": turn["content"]}) for turns in DIALOGUES for turn in turns]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines * 4))
    alpaca = [{"instruction": t[0]["content"], "input": "", "output": t[1]["content"]} for t in DIALOGUES]
    (tmp_path / "instructions.json").write_text(json.dumps(alpaca))
    return tmp_path


def command(ground, *more):
    return [
        "recipe", "pythia-70m-quick", "--base", str(ground / "pythia"), "--data", str(ground / "texts.jsonl"),
        "--validation", str(ground / "texts.jsonl"), "--work", str(ground / "work"), "--train", TRAIN,
        "--finetune", FINETUNE, "--prompts", "1", *more,
    ]  # fmt: skip


def done(capsys, *arguments):
    code = main(list(arguments))
    shown = capsys.readouterr()
    assert code == 0, shown.err[-3000:]
    return json.loads(shown.out.splitlines()[-1])


@pytest.fixture
def at_hub(hub, monkeypatch):
    at = functools.partial(HfApi, endpoint=hub.url)
    monkeypatch.setattr(downloads, "HfApi", at)
    monkeypatch.setattr("huggingface_hub.HfApi", at)
    monkeypatch.setattr("dynamo.spaces.deployment.time.sleep", lambda _: None)
    return hub


@pytest.fixture
def small_space(tmp_path, monkeypatch):
    """A project whose Space is quickly uploaded, in the place of this one."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("spaces_config.yaml", "requirements.txt"):
        (root / name).write_text((space.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    config = yaml.safe_load((root / "spaces_config.yaml").read_text(encoding="utf-8"))
    config["upload"] = ["app.py", "requirements.txt", "spaces_config.yaml"]
    (root / "spaces_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (root / "app.py").write_text("")
    (root / "README.md").write_text("# Ours")
    monkeypatch.setattr(space, "ROOT", root)
    return root


def test_from_a_raw_base_to_a_pushed_chat_pair_and_its_space(ground, at_hub, small_space, capsys):
    more = ["--instructions", str(ground / "instructions.json"), "--repo", "someone/talker",
            "--licence", "mit", "--space", "someone/talk", "--profile", "cpu"]  # fmt: skip
    result = done(capsys, *command(ground, *more))
    assert result["ran"] == [
        "base", "heads", "chat", "chat-base", "table", "pair", "losses", "speed", "report", "push", "space",
    ]  # fmt: skip
    pair = loading.load("someone/talker", device="cpu")
    assert pair.dynamo.config.num_token_heads == 3 and pair.table.order == 3
    assert text.has_chat_template(pair.tokenizer) and "completes text" not in pair.description
    card = at_hub.model("someone/talker").files["README.md"].decode()
    assert "Heads: texts.jsonl. Finetuning: instructions.json." in card and "WORK/heads" in card
    assert str(ground) not in card and "base_model" not in card
    assert at_hub.space("someone/talk").variables["DYNAMO_MODEL"] == "someone/talker"
    assert b"- someone/talker" in at_hub.space("someone/talk").files["README.md"]
    at_hub.requests.clear()
    assert done(capsys, *command(ground, *more))["ran"] == []
    assert at_hub.requests == []
    elsewhere = [each.replace("someone/talker", "someone/other") for each in more]
    assert done(capsys, *command(ground, *elsewhere, "--skip", "space"))["ran"] == ["push"]
    assert at_hub.model("someone/other").files


def test_without_instructions_the_model_completes_text_and_says_so(ground, capsys):
    result = done(capsys, *command(ground, "--skip", "losses", "speed", "report"))
    assert result["ran"] == ["base", "heads", "table", "pair"]
    pair = loading.load(result["pair"], device="cpu")
    assert not text.has_chat_template(pair.tokenizer)
    assert "completes text; it was not finetuned to chat" in pair.description


def test_a_plan_tells_time_and_memory_and_does_nothing(ground, capsys):
    result = done(capsys, *command(ground, "--instructions", str(ground / "instructions.json"), "--plan"))
    assert list(result["expected"]) == ["heads", "chat", "chat-base"]
    assert result["expected"]["heads"].endswith("96 tokens")
    read = int(result["expected"]["chat"].split()[-2].replace(",", ""))
    assert 0 < read <= 2 * 2 * 64, "no more than the steps that are asked for read"
    assert result["stages"]["table"].startswith("python -m dynamo count --tokenizer")
    assert not (ground / "work").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--repo", "someone/talker"], "licence: "),
        (["--space", "someone/talk"], "space: "),
        (["--instructions", "nowhere.json"], "instructions: "),
        (["--skip", "hheads"], "skip: "),
        (["--validation", "nowhere.jsonl"], "validation: "),
        (["--data", "elsewhere/texts.jsonl"], "data: "),
        (["--instructions", "-"], "instructions: several stages read it"),
    ],
)
def test_what_would_fail_hours_later_is_refused_at_once(ground, capsys, more, sentence):
    assert main(command(ground, *more)) == 2
    assert sentence in capsys.readouterr().err


def test_a_data_set_that_the_hub_lacks_is_named_before_the_first_stage(ground, hub, monkeypatch, capsys):
    for each in ("huggingface_hub.constants.ENDPOINT", "huggingface_hub.hf_api.constants.ENDPOINT"):
        monkeypatch.setattr(each, hub.url)
    assert main(command(ground, "--instructions", "someone/chats:train")) == 2
    assert "error: instructions: someone/chats:train is no local file" in capsys.readouterr().err
    assert not (ground / "work").exists()


def test_a_plan_counts_a_glob_and_says_what_only_the_hub_knows(ground, capsys):
    (ground / "more.json").write_text((ground / "instructions.json").read_text())
    expected = []
    for name in ("instructions.json", "*.json"):
        words = ["--instructions", str(ground / name), "--finetune", "--epochs 100", "--plan"]
        expected.append(done(capsys, *command(ground, *words))["expected"]["chat"])
    one, two = (int(words.split()[-2].replace(",", "")) for words in expected)
    assert two == 2 * one > 0
    words = ["--instructions", "someone/chats", "--finetune", "--epochs 1", "--plan"]
    assert "time unknown before" in done(capsys, *command(ground, *words))["expected"]["chat"]


def test_a_space_that_could_not_be_deployed_is_refused_at_once(ground, small_space, capsys):
    (small_space / "README.md").write_text("[gone](docs/gone.md)")
    more = ["--repo", "someone/talker", "--licence", "mit", "--space", "someone/talk", "--profile", "cpu"]
    assert main(command(ground, *more)) == 2
    assert "README.md links to docs/gone.md" in capsys.readouterr().err
    assert not (ground / "work").exists()


def test_a_base_without_room_for_the_template_is_refused(ground, tokenizer):
    tiny_base(vocab_size=296).save_pretrained(ground / "pythia")
    with pytest.raises(ValueError, match="has 296 ids and the chat template needs"):
        recipe.fetch_base(str(ground / "pythia"), ground / "base", chat=True)
    assert not (ground / "base").exists()


def test_stages_run_in_order_once_and_a_failure_stops_them(tmp_path):
    ran = []

    def scripted(words):
        ran.append(words)
        if words[0] == "write":
            (tmp_path / "a").write_text("")
        if words[0] == "fail":
            raise ValueError("fail: no reason")
        return {"said": 1}

    write = Stage("a", ["write"], tmp_path / "a")
    say = Stage("b", ["say"], tmp_path / "b.json", captured=True)
    fail = Stage("c", ["fail"], tmp_path / "c")
    assert run_stages([write, say], scripted) == ["a", "b"]
    assert json.loads((tmp_path / "b.json").read_text()) == {"said": 1}
    assert run_stages([write, say], scripted) == []
    assert run_stages([write, say, fail], scripted, skip=["c"]) == []
    with pytest.raises(ValueError, match="stage c failed: fail: no reason"):
        run_stages([write, say, fail], scripted)
    with pytest.raises(ValueError, match="stage d failed"):
        run_stages([Stage("d", ["quiet"], tmp_path / "d")], scripted)
    assert [words[0] for words in ran] == ["write", "say", "fail", "quiet"]


def test_a_stage_that_trains_is_the_command_that_it_shows(ground, monkeypatch):
    """What the plan shows makes the same run when somebody types it."""
    commands = []

    def note(run):
        commands.append(run)
        return SimpleNamespace(summary=dict)

    monkeypatch.setattr("dynamo.training.train.train", note)
    monkeypatch.setattr("dynamo.training.finetune.finetune", note)
    texts, chats = str(ground / "texts.jsonl"), str(ground / "instructions.json")
    found = stages(RecipeRun(
        "pythia-70m-quick", ground, texts, texts, instructions=chats,
        train={"data": ["a b", "c"], "heads_only": False}, finetune={"steps": 2, "base_lr": 1e-4},
    ))  # fmt: skip
    training = [stage for stage in found if isinstance(stage.task, TrainingRun | FinetuningRun)]
    assert [stage.name for stage in training] == ["heads", "chat", "chat-base"]
    for stage in training:
        run_command(shlex.split(stage.command())[3:])
    assert commands == [stage.task for stage in training]


def test_data_is_several_files_or_a_glob_of_them_as_train_takes_it(ground):
    texts = str(ground / "texts.jsonl")
    several = (str(ground / "text*.jsonl"), str(ground / "instructions.json"))
    run = RecipeRun("pythia-70m", ground, several, texts)
    found = {stage.name: stage for stage in stages(run)}
    assert found["heads"].task.data == several
    assert found["table"].task[3:6] == ["--data", *several]
    with pytest.raises(ValueError, match=r"^data: .*none\*"):
        replace(run, data=(texts, str(ground / "none*")))


def test_estimates_count_what_is_trained():
    shape = pythia_shape("70m", heads=3)
    base, extra = shape.base_parameters, shape.extra_parameters
    whole, heads_only = TrainingOptions(), TrainingOptions(heads_only=True)
    seconds = [estimates.training_seconds(shape, each, 1000, speed=1e9) for each in (whole, heads_only)]
    multiplications = [1000 * 3 * (base + extra), 1000 * (base + 3 * extra)]
    assert [each * estimates.EFFICIENCY * 1e9 for each in seconds] == pytest.approx(multiplications)
    assert estimates.training_bytes(shape, whole) == 16 * (base + extra)
    assert estimates.training_bytes(shape, heads_only) == 4 * base + 16 * extra


@pytest.mark.parametrize("heads_only", [False, True])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("again", [False, True])
def test_what_a_pass_is_said_to_keep_is_what_it_keeps(heads_only, mixed_precision, again):
    base = tiny_base(hidden_size=64, intermediate_size=256, num_attention_heads=2)
    model = DynamoForCausalLM.from_base(base, num_token_heads=3).train()
    if heads_only:
        model.freeze_base()
    if again:
        model.activation_checkpointing_enable()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor  # held, or its place would be taken by another
        return tensor

    config, ids = model.config, torch.arange(4 * 128).view(4, 128) % model.config.vocab_size
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision == "bf16"),
    ):
        output = model(ids, labels=ids)
    assert output.loss.requires_grad
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    options = TrainingOptions(
        heads_only=heads_only, mixed_precision=mixed_precision, activation_checkpointing=again
    )
    estimated = estimates.pass_bytes(model_shape(model), options, ids.numel())
    computed_now = estimates.LAYER_BYTES[mixed_precision] if again else 0
    estimated -= ids.numel() * config.hidden_size * computed_now
    estimated -= estimates.LOGIT_BYTES * ids.numel() * config.vocab_size
    assert counted <= estimated <= 1.8 * counted


def test_a_batch_is_divided_into_the_fewest_passes_that_fit():
    def passes(batch, fitting_rows, least=1):
        class Scripted(estimates.Estimator):
            def bytes(self, options, length):
                return options.batch_size // options.accumulation

        estimator = Scripted(pythia_shape("70m"), free=fitting_rows / estimates.FILLED)
        fitted = estimator.fit(TrainingOptions(batch_size=batch, accumulation=least), 16)
        return fitted.accumulation, fitted.activation_checkpointing

    assert passes(64, 64) == (1, False)
    assert passes(64, 20) == (4, False)
    assert passes(64, 64, least=3) == (4, False)
    assert passes(60, 7) == (10, False)
    assert passes(64, 0.5) == (64, True)
    assert passes(2, 64, least=8) == (2, False)


@pytest.mark.parametrize(
    ("free", "given", "expected", "fits"),
    [
        (None, {}, (1, False), True),
        (1e15, {}, (1, False), True),
        (60e9, {}, (4, False), True),
        (12.5e9, {}, (32, True), True),
        (12.5e9, {"accumulation": 2}, (2, False), False),
        (3e9, {}, (64, True), False),
    ],
)
def test_the_papers_batch_is_divided_to_fit_unless_told_otherwise(
    ground, monkeypatch, free, given, expected, fits
):
    monkeypatch.setattr(estimates, "available_memory", lambda device: free)
    monkeypatch.setattr(estimates, "machine_speed", lambda: 1e12)
    texts = str(ground / "texts.jsonl")
    run = RecipeRun("pythia-410m", ground, texts, texts, train=given)
    found, costs = estimates.fit_stages(stages(run), run)
    [options] = [stage.task.options for stage in found if stage.name == "heads"]
    assert (options.accumulation, options.activation_checkpointing) == expected
    cost = costs["heads"]
    assert cost.options == options
    if free is not None and not given:
        assert (cost.bytes <= 0.9 * free) == fits
    assert ("GB are free" in cost.in_words()) == (free is not None)


def test_every_stage_has_a_name_and_a_result_of_its_own(ground):
    texts, chats = str(ground / "texts.jsonl"), str(ground / "instructions.json")
    run = RecipeRun(
        "pythia-70m", ground, texts, texts, instructions=chats, licence="mit", repo="a/b", space="a/c"
    )
    found = stages(run)
    assert len({stage.name for stage in found}) == len({stage.result for stage in found}) == len(found)
