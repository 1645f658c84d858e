"""The shipped pair: it loads, it is what its cards say, and its recipe is the one in the repository."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from dynamo import Engine, SamplingOptions, load, loading
from dynamo.commands import train
from dynamo.data import text
from dynamo.data.prompts import PROMPTS_FILE
from dynamo.evaluation import replies
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.pipelines import embedded
from dynamo.training.options import training_run

FOLDER = loading.EMBEDDED_FOLDER


@pytest.fixture(scope="module")
def pair():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def report():
    return json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prompts(pair):
    chats = json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))
    assert len(chats) == 40
    return [text.encode_chat(pair.tokenizer, chat) for chat in chats]


def test_the_pair_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 60e6


def test_both_models_are_of_one_shape_and_stop_at_the_end_of_a_turn(pair):
    assert pair.base.config.num_hidden_layers == pair.dynamo.config.num_hidden_layers == 8
    assert pair.dynamo.config.num_token_heads == 3 and pair.table.order == 3
    end = pair.tokenizer.convert_tokens_to_ids(text.END_OF_TURN)
    assert Engine(pair.base).end_ids == Engine(pair.dynamo, pair.table).end_ids == {end}
    assert pair.dynamo.config.max_position_embeddings >= 1024


def test_cards_are_written_from_the_report(report):
    for part in ("base", "dynamo"):
        assert (FOLDER / part / "README.md").read_text(encoding="utf-8") == embedded.card(part, report)


def test_report_names_the_commands_of_the_recipe(report):
    stages = embedded.stages(Path("DATA"), Path("runs"))
    for line, stage in zip(report["commands"], stages, strict=True):
        words = shlex.split(line.removeprefix("python -m dynamo "))
        assert task_of(words) == task_of(shlex.split(stage.command())[3:])


def task_of(words):
    """The run that a command line of `train` makes, the words of other commands."""
    if words[0] != "train":
        return words
    parser = argparse.ArgumentParser()
    train.configure(parser)
    return training_run(**vars(parser.parse_args(words[1:])))


def test_first_head_is_no_worse_than_the_base_and_both_reach_the_minimum(report):
    base, dynamo = (report["development"][part]["bits_per_byte"] for part in ("base", "dynamo"))
    assert base <= 0.92 and dynamo <= 1.01 * base


def test_replies_reproduce_the_reports_tokens_per_forward(pair, report, prompts):
    """Ten prompts of the forty at the default threshold: measured again, on whatever machine this is."""
    engine = Engine(pair.dynamo, pair.table, pair.tokenizer)
    measured = replies.audited_replies(engine, prompts[:10], SamplingOptions(), pair.base)
    assert measured.tokens_per_forward >= 2.0
    assert report["replies"]["dynamo at 0.5"]["tokens_per_forward"] >= 2.2
    for reply in (run.tokens for run in measured.runs):
        assert reply[-1] in engine.end_ids, "a reply ends by itself"
        assert 3 <= len(reply) <= 100


def test_threshold_1_is_the_one_token_loop_of_the_same_weights(pair, prompts):
    ours = Engine(pair.dynamo, pair.table, pair.tokenizer)
    baseline = Engine(pair.dynamo.to_pythia(), None, pair.tokenizer)
    options = SamplingOptions(threshold=1.0)
    for seed, prompt in enumerate(prompts[:4]):
        texts = [[t for s in e.stream(prompt, options, 40, seed) for t in s.tokens] for e in (ours, baseline)]
        assert texts[0] == texts[1]


def test_numbers_in_the_texts_are_those_of_the_report_and_of_the_sweep(report):
    """The tables of README and docs/embedded.md are copies: a new pair or sweep must not outdate them."""
    assets = FOLDER.parent
    readme, page = (
        (assets.parent / name).read_text(encoding="utf-8").replace("**", "")
        for name in ("README.md", "docs/embedded.md")
    )
    base, dynamo = (report["development"][part]["bits_per_byte"] for part in ("base", "dynamo"))
    assert f"| {base:.3f} | {dynamo:.3f} |" in page
    base, dynamo = (report["parameters"][part] / 1e6 for part in ("base", "dynamo"))
    assert f"| {base:.1f} M | {dynamo:.1f} M with all three heads |" in page
    sweep = SweepReport.read(assets / "sweep.json")
    assert (sweep.model, sweep.prompts, sweep.seeds) == ("embedded", 40, 3)
    points = {f"{point.threshold:g}": point for point in sweep.points}
    rows = {"the base's loop": sweep.base} | {t: points[t] for t in ("1", "0.9", "0.7", "0.5", "0.3", "0")}
    for name, point in rows.items():
        passes = f"| {name} | {point.tokens_per_forward.value:.2f} |"
        shares = " / ".join(f"{100 * point.share_by_order.get(order, 0):.0f}" for order in "123")
        nats, unlikely = (point.quality[each] for each in ("nats_per_token", "share_below_1_percent"))
        quality = (
            f"| {nats.value:.2f} ({nats.low:.2f} to {nats.high:.2f}) "
            f"| {100 * unlikely.value:.1f} % ({100 * unlikely.low:.1f} to {100 * unlikely.high:.1f}) |"
        )
        assert f"{passes} {shares} {quality}" in page
        if name in ("the base's loop", "0.9", "0.5", "0"):
            assert f"{passes[:-1]}{quality}" in readme
