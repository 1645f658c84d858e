"""What a loaded pair takes and how fast it was, as the Models tab tells it."""

import gc
import re
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bases import new_base, with_heads
from conftest import tiny_base, tiny_dynamo
from tables import table_for
from talks import SETTINGS

from dynamo import Engine, kernels
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.few_bits import BYTES
from dynamo.decoding.in_loops import InLoop
from dynamo.loading import Footprint, load, memory_of
from dynamo.model import model_shape
from dynamo.model.packing import copies_of
from dynamo.model.shape import bytes_together
from dynamo.training.trainer import save_model
from dynamo.ui import ModelPair
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.models.few_bits import few_bits_table
from dynamo.ui.models.footprint import footprint_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("pair")
    save_model(tiny_base(seed=1).half(), tokenizer, folder / "base")
    save_model(tiny_dynamo(seed=2).half(), tokenizer, folder / "dynamo")
    table_for(tokenizer).save(folder / "dynamo" / "cooccurrence.safetensors")
    return folder


def test_caches_are_those_of_both_lanes_at_full_length(folder):
    pair = load(str(folder), device="cpu")
    states = [Decoder(model).new_cache(pair.base.config.max_position_embeddings) for model in
              (pair.base, pair.dynamo)]  # fmt: skip
    assert Footprint.from_pair(pair).caches == sum(state.cache.nbytes for state in states)


def held_beside(*models):
    """Bytes that decoders' packed layers hold and the models do not, by looking into them."""
    decoders = [Decoder(model) for model in models]
    assert all(decoder.packed for decoder in decoders)
    own = {weight.untyped_storage().data_ptr() for model in models for weight in model.parameters()}
    found, total = {}, 0
    parts = [part for decoder in decoders for part in (*decoder._stem, decoder._finals)]
    kept = [product for part in parts for products in part.products for product in products.values()]
    kept += [decoder._unembed for decoder in decoders]
    for product in {id(each): each for each in kept}.values():
        total += product.numbers.nbytes if isinstance(product, InLoop) else 0
        for cell in getattr(product, "__closure__", None) or ():
            if isinstance(cell.cell_contents, torch.ScriptObject):
                weight, bias = torch.ops.quantized.linear_unpack_fp16(cell.cell_contents)
                total += 2 * weight.numel()
                found |= {} if bias is None else {bias.untyped_storage().data_ptr(): bias}
            elif isinstance(cell.cell_contents, torch.Tensor):
                found[cell.cell_contents.untyped_storage().data_ptr()] = cell.cell_contents
    for part in parts:
        found |= {each.untyped_storage().data_ptr(): each for each in (part.gain, part.shift)}
    for looped in filter(None, (decoder._in_loops or decoder._finals.looped for decoder in decoders)):
        total += sum(each.nbytes for each in looped._weights)
    return total + sum(each.nbytes for pointer, each in found.items() if pointer not in own)


def in_halves(model, names):
    """With the weights whose names end so as a float16 checkpoint brings them."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(names):
                weight.copy_(weight.half())
    return model


@pytest.mark.parametrize("names", ["", "nothing", "mlp.dense_4h_to_h.weight", "dense_h_to_4h.weight"])
@pytest.mark.parametrize("build", [tiny_base, tiny_dynamo])
def test_copies_counted_are_those_that_a_decoder_holds(build, names):
    """Copies counted are those that a decoder holds whichever weights fit 16 bits."""
    model = in_halves(build(seed=3), names)
    assert sum(copies_of(model)[0].values()) == held_beside(model) > 0


@pytest.mark.skipif(kernels.loops() is None, reason="numba is missing or was not asked for")
@pytest.mark.parametrize("heads", [0, 2])
def test_copies_of_a_llama_for_passes_in_one_loop_are_counted(heads):
    base = new_base("llama", intermediate_size=64)
    model = in_halves(with_heads(base, num_token_heads=heads + 1) if heads else base, "")
    loops = Decoder(model)._in_loops
    held = sum(each.nbytes for each in (*loops._matrices, loops._gains, loops._biases))
    layers = 3 + heads
    shape = model_shape(model)
    products = layers * shape.layer.packed_bytes(dict.fromkeys(shape.layer.packed_matrices, 1))
    output = 104 * (2 * 32 + 4)  # 97 rows by eights
    assert copies_of(model)[0] == shape.copies()
    assert sum(shape.copies().values()) == held + products + output


@pytest.mark.parametrize("names", ["", "nothing"])
def test_what_a_base_shares_with_its_dynamo_model_counts_once(folder, names):
    pair = load(str(folder / "dynamo"), device="cpu")
    in_halves(pair.dynamo, "")
    if names:  # 16 bits hold the base's weights and not the heads'
        for weight in pair.dynamo.token_heads.parameters():
            weight.data += 1e-6
    together = Footprint.from_pair(pair).copies
    assert together == held_beside(pair.base, pair.dynamo)
    apart = [sum(each.values()) for each in copies_of(pair.base, pair.dynamo)]
    assert max(apart) < together < sum(apart)


@pytest.mark.skipif(kernels.loops() is None, reason="numba is missing or was not asked for")
def test_a_llamas_base_takes_no_copies_beside_its_dynamo_models():
    model = in_halves(with_heads(new_base("llama", intermediate_size=64)), "")
    base, dynamo = copies_of(model.to_base(shared=True), model)
    assert base and bytes_together(base, dynamo) == sum(dynamo.values())


def test_copies_are_freed_once_another_pair_is_on_the_page(folder):
    service = PageService(ModelPair.from_pair(load(str(folder / "dynamo"), device="cpu")))
    engines = service.pair.engines.by_name.values()
    decoders = [engine._decoder for engine in engines if isinstance(engine, Engine)]
    copies = [weakref.ref(each.made) for decoder in decoders for each in decoder._copies]
    assert copies
    del engines, decoders
    answered(service)
    service.swap(ModelPair.from_pair(load(str(folder), device="cpu")))
    gc.collect()
    assert not any(each() for each in copies)


def test_a_model_whose_heads_cannot_go_side_by_side_has_no_copies():
    model = tiny_dynamo(seed=3, head_source="last")
    assert not Decoder(model).packed and copies_of(model) == [{}]


def test_copies_of_weights_depend_on_their_dtype(folder, tmp_path):
    """Copies of weights saved in 16 bits are others than of float32 and none in bfloat16."""
    halves = Footprint.from_pair(load(str(folder), device="cpu"))
    assert halves.copies > 0
    for name, model in (("base", tiny_base(seed=1)), ("dynamo", tiny_dynamo(seed=2))):
        save_model(model, load(str(folder), device="cpu").tokenizer, tmp_path / name)
    whole = Footprint.from_pair(load(str(tmp_path), device="cpu"))
    assert whole.weights == halves.weights and whole.copies != halves.copies
    narrow = Footprint.from_pair(load(str(folder), "cpu", torch.bfloat16))
    assert narrow.copies == 0 and narrow.dtype == "bfloat16" and 2 * narrow.caches == halves.caches


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_in_full_is_foretold_by_shapes_and_is_what_the_whole_pair_takes(folder, quantize):
    whole = Footprint.from_pair(load(str(folder), device="cpu"))
    fewer = Footprint.from_pair(load(str(folder), device="cpu", quantize=quantize))
    assert (whole.quantised, fewer.quantised, whole.full) == ("", quantize, None)
    assert fewer.full == pytest.approx(whole.weights + whole.copies, rel=0.01)
    assert fewer.weights < whole.weights and fewer.copies == 0
    assert (fewer.caches, fewer.table) == (whole.caches, whole.table)
    # A lone checkpoint's base shares its weights.
    lone = Footprint.from_pair(load(str(folder / "dynamo"), device="cpu", quantize=quantize))
    alone = load(str(folder / "dynamo"), device="cpu")
    assert lone.full == pytest.approx(Footprint.from_pair(alone).copies + memory_of(alone.dynamo), rel=0.01)


def test_a_table_takes_its_counts_and_what_it_has_worked_out(folder):
    pair = load(str(folder), device="cpu")
    before = Footprint.from_pair(pair).table
    counted = [pair.table.unigrams, *(each.last for each in pair.table.levels)]
    assert before >= sum(array.nbytes for array in counted)
    pair.table.ratio(np.array([[1, 2]]))
    ModelPair.from_pair(pair)
    assert Footprint.from_pair(pair).table > before
    assert Footprint.from_pair(replace(pair, table=None)).table == 0


def answered(service):
    *_, last = service.answer(Chat(), "hello", SETTINGS)
    return last


def cells(service):
    table = footprint_table(service.pair.footprint, service.speeds(), service.speeds(quantised=""))
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>((?:<td>[^<]*</td>)+)</tr>', table)
    return {name: re.findall(r"<td>([^<]*)</td>", row) for name, row in rows}


def test_speeds_are_shown_after_an_answer(folder):
    """Speeds are shown after an answer and beside those of the whole pair if it answered here."""
    service = PageService(ModelPair.from_pair(load(str(folder), device="cpu")))
    assert cells(service)["DynaMo, tokens/s"] == ["after an answer"]
    stopped = service.answer(Chat(), "hello", SETTINGS)
    next(stopped)
    stopped.close()
    assert service.speeds() == {}, "a run that was stopped tells nothing"
    answered(service)
    whole = service.speeds()
    assert set(whole) == {"base", "dynamo"} and all(speed > 0 for speed in whole.values())
    assert re.fullmatch(r"[\d,]+", cells(service)["Base model, tokens/s"][0])
    service.swap(ModelPair.from_pair(load(str(folder), device="cpu", quantize="8bit")))
    shown = cells(service)
    assert shown["DynaMo, tokens/s"] == ["after an answer", f"{whole['dynamo']:,.0f}"]
    assert (
        len(shown["Together"]) == 2 and shown["Caches of both lanes"][0] == shown["Caches of both lanes"][1]
    )
    answered(service)
    assert service.speeds() != whole and service.speeds(quantised="") == whole


def test_speeds_of_another_opponent_are_not_the_base_loops(folder):
    service = PageService(ModelPair.from_pair(load(str(folder), device="cpu")))
    list(service.answer(Chat(), "hello", SETTINGS, "threshold-1"))
    assert service.speeds() == {}


def test_what_fewer_bits_change_stands_beside_how_fast_they_were_here():
    changes = {"int8": (0.0051, -0.0055), "int4": (0.0008, 0.001)}
    measured = [
        SimpleNamespace(
            weights=bits,
            head=head,
            divergence=SimpleNamespace(value=head * kl),
            rise=SimpleNamespace(value=rise),
        )
        for bits, (kl, rise) in changes.items()
        for head in (1, 2)
    ]
    speeds = {"": {"base": 88.4, "dynamo": 84.2}, "int4": {"base": 1183, "dynamo": 129}}
    table = few_bits_table(measured, lambda bits: speeds.get(bits, {}), "int4")
    assert re.findall(r'<th scope="col">([^<]*)</th>', table) == ["as they are", "int8", "int4 (loaded)"]
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>((?:<td>[^<]*</td>)+)</tr>', table)
    assert {name: re.findall(r"<td>([^<]*)</td>", row) for name, row in rows} == {
        "KL, first head": ["–", "0.0051", "0.0008"],
        "KL, other heads": ["–", "0.0102", "0.0016"],
        "Loss": ["–", "−0.55 %", "+0.10 %"],
        "Base model, tokens/s": ["88", "not yet", "1,183"],
        "DynaMo, tokens/s": ["84", "not yet", "129"],
    }
    assert few_bits_table([], lambda bits: {}, "own") == ""


@pytest.mark.parametrize("weights", BYTES)
def test_copies_in_fewer_bits_take_what_is_foretold(folder, weights):
    model = load(str(folder), device="cpu").dynamo
    decoder = Decoder(model, weights=weights)
    products = [
        each for part in (*decoder._stem, decoder._finals) for one in part.products for each in one.values()
    ]
    held = sum(each.numbers.nbytes for each in (*products, decoder._unembed))
    assert model_shape(model).few_bits_bytes(BYTES[weights]) == pytest.approx(held, rel=0.2)


def test_a_pair_whose_memory_is_not_known_has_no_table():
    assert footprint_table(None, {}, {}) == ""
