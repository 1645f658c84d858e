"""What a loaded pair takes and how fast it was, as the Models tab tells it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from test_chat import SETTINGS
from test_loading import table_for

from dynamo.decoder import Decoder
from dynamo.loading import Footprint, load, memory_of
from dynamo.training import save_model
from dynamo.ui import Analyses, Contenders
from dynamo.ui.chat import Chat
from dynamo.ui.footprint import footprint_table
from dynamo.ui.host import Host


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("pair")
    save_model(tiny_base(seed=1).half(), tokenizer, folder / "base")
    save_model(tiny_dynamo(seed=2).half(), tokenizer, folder / "dynamo")
    table_for(tokenizer).save(folder / "dynamo" / "cooccurrence.safetensors")
    return folder


def test_caches_are_those_of_both_lanes_at_full_length(folder):
    pair = load(str(folder), device="cpu")
    states = [Decoder(model).new_state(pair.base.config.max_position_embeddings) for model in
              (pair.base, pair.dynamo)]  # fmt: skip
    assert Footprint.of(pair).caches == sum(state.cache.nbytes for state in states)


def test_copies_take_16_bits_where_the_weights_were_saved_so_and_there_are_none_in_bfloat16(folder, tmp_path):
    halves = Footprint.of(load(str(folder), device="cpu"))
    assert halves.copies > 0
    for name, model in (("base", tiny_base(seed=1)), ("dynamo", tiny_dynamo(seed=2))):
        save_model(model, load(str(folder), device="cpu").tokenizer, tmp_path / name)
    assert Footprint.of(load(str(tmp_path), device="cpu")).copies == 2 * halves.copies
    narrow = Footprint.of(load(str(folder), "cpu", torch.bfloat16))
    assert narrow.copies == 0 and narrow.dtype == "bfloat16" and 2 * narrow.caches == halves.caches


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_in_full_is_foretold_by_shapes_and_is_what_the_whole_pair_takes(folder, quantize):
    whole = Footprint.of(load(str(folder), device="cpu"))
    fewer = Footprint.of(load(str(folder), device="cpu", quantize=quantize))
    assert (whole.quantised, fewer.quantised, whole.full) == ("", quantize, None)
    assert fewer.full == pytest.approx(whole.weights + whole.copies, rel=0.01)
    assert fewer.weights < whole.weights and fewer.copies == 0
    assert (fewer.caches, fewer.table) == (whole.caches, whole.table)
    # A lone checkpoint's base shares its weights.
    lone = Footprint.of(load(str(folder / "dynamo"), device="cpu", quantize=quantize))
    alone = load(str(folder / "dynamo"), device="cpu")
    assert lone.full == pytest.approx(Footprint.of(alone).copies + memory_of(alone.dynamo), rel=0.01)


def test_a_table_takes_its_counts_and_what_it_has_worked_out(folder):
    pair = load(str(folder), device="cpu")
    before = Footprint.of(pair).table
    counted = [pair.table.unigrams, *(each.last for each in pair.table.levels)]
    assert before >= sum(array.nbytes for array in counted)
    pair.table.ratio(np.array([[1, 2]]))
    Contenders.from_pair(pair)
    assert Footprint.of(pair).table > before
    assert Footprint.of(replace(pair, table=None)).table == 0


def answered(host):
    *_, last = host.answer(Chat(), "hello", SETTINGS)
    return last


def cells(host):
    table = footprint_table(host.contenders.footprint, host.speeds(), host.speeds(in_full=True))
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>((?:<td>[^<]*</td>)+)</tr>', table)
    return {name: re.findall(r"<td>([^<]*)</td>", row) for name, row in rows}


def test_speeds_are_told_after_an_answer_and_beside_those_of_the_whole_pair_if_it_answered_here(folder):
    host = Host(Contenders.from_pair(load(str(folder), device="cpu")), Analyses())
    assert cells(host)["DynaMo, tokens/s"] == ["after an answer"]
    stopped = host.answer(Chat(), "hello", SETTINGS)
    next(stopped)
    stopped.close()
    assert host.speeds() == {}, "a run that was stopped tells nothing"
    answered(host)
    whole = host.speeds()
    assert set(whole) == {"base", "dynamo"} and all(speed > 0 for speed in whole.values())
    assert re.fullmatch(r"[\d,]+", cells(host)["Base model, tokens/s"][0])
    host.swap(Contenders.from_pair(load(str(folder), device="cpu", quantize="8bit")), Analyses())
    told = cells(host)
    assert told["DynaMo, tokens/s"] == ["after an answer", f"{whole['dynamo']:,.0f}"]
    assert len(told["Together"]) == 2 and told["Caches of both lanes"][0] == told["Caches of both lanes"][1]
    answered(host)
    assert host.speeds() != whole and host.speeds(in_full=True) == whole


def test_speeds_of_another_opponent_are_not_the_base_loops(folder):
    host = Host(Contenders.from_pair(load(str(folder), device="cpu")), Analyses())
    list(host.answer(Chat(), "hello", SETTINGS, "threshold-1"))
    assert host.speeds() == {}


def test_a_pair_whose_memory_is_not_known_has_no_table():
    assert footprint_table(None, {}, {}) == ""
