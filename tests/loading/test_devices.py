"""Models whose layers are spread over devices, by accelerate's hooks, answer as whole ones do."""

import json

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from conftest import DIALOGUES, tiny_base, tiny_dynamo
from device_maps import IDS, layers

from dynamo import Engine, SamplingOptions, loading
from dynamo.__main__ import main
from dynamo.common.device_map import execution_device, is_dispatched
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.generate import GenerateEngine
from dynamo.decoding.offloaded import DispatchedDecoder, decoder_for
from dynamo.evaluation.audit import audit
from dynamo.training.trainer import save_model

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("pair")
    save_model(tiny_base(seed=1).half(), tokenizer, folder / "base")
    model = tiny_dynamo(seed=2)
    model.count_tokens(torch.arange(50, 90))
    save_model(model.half(), tokenizer, folder / "dynamo")
    return folder


def on_disk(*names):
    return layers(**dict.fromkeys(names, "disk"))


WAYS = {
    "what accelerate makes of a tiny memory": {"device_map": "auto", "max_memory": {"cpu": 150_000}},
    "all on disk": {"device_map": {"": "disk"}},
    "a layer and a head on disk": {"device_map": on_disk("backbone.gpt_neox.layers.1", "token_heads.1")},
    "what heads share on disk": {
        "device_map": on_disk("backbone.gpt_neox.final_layer_norm", "backbone.lm_head")
    },
}


def replies(engine, **options):
    steps = engine.stream(IDS, SamplingOptions(threshold=0.01, **options), max_new_tokens=24, seed=4)
    return [step.tokens for step in steps]


@pytest.mark.parametrize("way", WAYS, ids=WAYS)
def test_a_spread_pair_answers_as_a_whole_one(folder, way):
    whole = loading.load(str(folder), device="cpu")
    spread = loading.load(str(folder), **WAYS[way])
    assert is_dispatched(spread.dynamo) and not is_dispatched(whole.dynamo)
    assert isinstance(decoder_for(spread.dynamo), DispatchedDecoder)
    for engine in (Engine, GenerateEngine):
        assert replies(engine(spread.base)) == replies(engine(whole.base))
    assert any(len(tokens) > 1 for tokens in replies(Engine(spread.dynamo)))
    for options in ({}, {"exact": True}):
        assert replies(Engine(spread.dynamo), **options) == replies(Engine(whole.dynamo), **options)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        torch.testing.assert_close(spread.dynamo(ids).head_logits, whole.dynamo(ids).head_logits, **CLOSE)
    expected = audit(whole.base, IDS[:10], IDS[10:])
    assert audit(spread.base, IDS[:10], IDS[10:]).nats_per_token == pytest.approx(
        expected.nats_per_token, rel=1e-4
    )


@pytest.mark.parametrize(
    "heads",
    [
        {"own_output_embedding": True, "own_final_norm": True},
        {"head_layers": 2, "head_source": "last"},
        {"head_layers": 0, "own_output_embedding": True},
    ],
)
def test_heads_of_every_kind_follow_their_devices(heads):
    model = tiny_dynamo(**heads)
    whole, expected = Decoder(model, packed=False), []
    chunks = [(IDS, None), ([7], None), ([8, 9, 10], 2), ([11, 12], 1)]
    state = whole.new_cache(128)
    for chunk, queries in chunks:
        expected.append(whole.forward(state, chunk, None, queries))
    offloaded = decoder_for(cpu_offload(model, execution_device="cpu"))
    state = offloaded.new_cache(128)
    for (chunk, queries), logits in zip(chunks, expected, strict=True):
        torch.testing.assert_close(offloaded.forward(state, chunk, None, queries), logits, **CLOSE)
    assert state.length == len(IDS) + 6


def test_hooks_without_anything_to_move_change_nothing(dynamo_model):
    """A split over devices that are all this CPU: the weights are there, and no pass is different."""
    model = tiny_dynamo()
    dispatch_model(model, layers(), main_device="cpu", force_hooks=True)
    assert not is_dispatched(model) and hasattr(model.token_heads[0].layers[0], "_hf_hook")
    assert not decoder_for(model).packed
    whole = Decoder(dynamo_model)
    expected = whole.forward(whole.new_cache(64), IDS)
    for decoder in (decoder_for(model), DispatchedDecoder(model)):
        torch.testing.assert_close(decoder.forward(decoder.new_cache(64), IDS), expected, **CLOSE)


def test_both_decoders_have_all_that_an_engine_may_ask_of_one(folder):
    spread = Engine(loading.load(str(folder), device_map={"": "disk"}).dynamo)
    whole = Engine(loading.load(str(folder), device="cpu", dtype=torch.float32).dynamo)
    public = [name for name in dir(whole._decoder) if not name.startswith("_")]
    assert {"forward_batch", "bytes_per_weight"} < set(public) <= set(dir(spread._decoder))
    assert spread.bytes_per_weight() == 4


def test_rows_that_are_decoded_together_are_those_decoded_alone(folder):
    engine = Engine(loading.load(str(folder), device_map=on_disk("backbone.gpt_neox.layers.0")).dynamo)
    prompts = [IDS, IDS[:7], IDS[3:20]]
    options = SamplingOptions(threshold=0.01)
    together = [[] for _ in prompts]
    for index, step in engine.stream_batch(prompts, options, max_new_tokens=16):
        together[index] += step.tokens
    alone = []
    for seed, prompt in enumerate(prompts):
        steps = engine.stream(prompt, options, max_new_tokens=16, seed=seed)
        alone.append([token for step in steps for token in step.tokens])
    assert together == alone


def test_memory_is_told_by_place_and_shared_parts_count_once(folder):
    whole = loading.memory_of(loading.load(str(folder), device="cpu").dynamo)
    model = loading.load(str(folder), device_map=on_disk("backbone.gpt_neox.layers.1")).dynamo
    layer = 4 * sum(weight.numel() for weight in model.backbone.gpt_neox.layers[1].parameters())
    assert loading.memory_by_device(model) == {"cpu": whole - layer, "disk": layer}
    assert loading.memory_of(model) == whole - layer
    lone = loading.load(str(folder / "dynamo"), device_map=on_disk("backbone.gpt_neox.layers.1"))
    assert loading.memory_by_device(lone.dynamo, lone.base)["disk"] == layer
    waiting = cpu_offload(loading.load(str(folder), device="cpu").dynamo, execution_device="cpu")
    assert loading.memory_by_device(waiting) == {"cpu": whole}


def test_where_a_module_computes_is_told_by_its_hook():
    model = tiny_dynamo()
    assert execution_device(model) == torch.device("cpu")
    cpu_offload(model, execution_device="cpu")
    assert model.device.type == "meta" and execution_device(model) == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"device": "cpu", "device_map": "auto"},
            "device: ",
        ),
        ({"device_map": "wherever"}, "device_map: "),
        ({"max_memory": {"cpu": 1}}, "max_memory: "),
        (
            {"device_map": {"backbone": "cpu", "token_heads": "disc"}},
            "device_map: ",
        ),
    ],
)
def test_a_map_that_is_none_is_refused(folder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        loading.load(str(folder), **options)


def test_quantised_layers_do_not_wait_on_disk(folder):
    with pytest.raises(ValueError, match=r"in 8bit does not fit .*; load it in 4bit, or choose a smaller"):
        loading.load(str(folder), quantize="8bit", device_map="auto", max_memory={"cpu": 100_000})


def test_quantised_layers_take_a_map_that_holds_them(folder):
    spread = loading.load(str(folder), quantize="8bit", device_map="auto").dynamo
    whole = loading.load(str(folder), quantize="8bit", device="cpu").dynamo
    assert replies(Engine(spread)) == replies(Engine(whole))


@pytest.mark.parametrize("verb", ["generate", "compare"])
def test_commands_take_a_map(folder, verb, capsys, monkeypatch):
    monkeypatch.setattr("dynamo.loading.devices.free_memory", lambda: {"cpu": 150_000})
    arguments = [verb, "Hello", "--model", str(folder), "--max-new-tokens", "3", "--device-map", "auto"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == str(folder)
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "a device map places the layers" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sweep", "complete"])
def test_measuring_commands_write_the_same_of_a_spread_pair_as_of_a_whole_one(
    folder, verb, capsys, monkeypatch, tmp_path
):
    """Texts, counts and qualities; the calibration too. Only clocks may differ."""
    prompts = tmp_path / "prompts"
    chats = [[{"role": "user", "content": content}] for content in ("Hello", "A room, please.")]
    data = tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in DIALOGUES), "utf-8")
    if verb == "sweep":
        prompts.write_text(json.dumps(chats), "utf-8")
        more = ["--seeds", "2", "--batch", "2", "--data", str(data), "--positions", "6"]
    else:
        prompts.write_text('{"prompt": "Hello"}\n{"prompt": "A room"}\n', "utf-8")
        more = ["--seeds", "3"]
    monkeypatch.setattr("dynamo.loading.devices.free_memory", lambda: {"cpu": 150_000})
    spread, printed = [], {}
    load = loading.load

    def watched(*arguments, **options):
        pair = load(*arguments, **options)
        spread.append(is_dispatched(pair.dynamo))
        return pair

    monkeypatch.setattr(loading, "load", watched)
    for way in (["--device", "cpu"], ["--device-map", "auto"]):
        output = tmp_path / f"output{way[0]}"
        arguments = [verb, "--model", str(folder), "--prompts", str(prompts), "--thresholds", "0.01", "1",
                     "--max-new-tokens", "6", "--output", str(output), *more, *way]  # fmt: skip
        assert main(arguments) == 0, capsys.readouterr().err
        printed[way[0]] = output.read_text("utf-8")
    assert spread == [False, True]
    alone, other = printed.values()
    if verb == "complete":
        rows = [[json.loads(line) for line in each.splitlines()] for each in (alone, other)]
        texts = [[(row["prompt_id"], row["seed"], row["threshold"], row["text"]) for row in each]
                 for each in rows]  # fmt: skip
        assert texts[0] == texts[1] and len(texts[0]) == 2 * 3 * 3
        return
    whole, parted = json.loads(alone), json.loads(other)
    for one, same in zip([whole["base"], *whole["points"]], [parted["base"], *parted["points"]], strict=True):
        assert [one[name] for name in ("tokens", "passes", "share_by_order")] == [
            same[name] for name in ("tokens", "passes", "share_by_order")
        ]
        for name, quality in one["quality"].items():
            assert quality["value"] == pytest.approx(same["quality"][name]["value"], rel=1e-4), name
    assert any(order != "1" for order in whole["points"][0]["share_by_order"])
    for curve, same in zip(whole["calibration"], parted["calibration"], strict=True):
        for name in ("count", "right", "confidence"):
            expected = [each[name] for each in curve["bins"]]
            assert [each[name] for each in same["bins"]] == pytest.approx(expected, rel=1e-4)


def test_bench_has_no_map_as_it_measures_the_fast_path_of_one_device(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--device-map", "auto"])
    assert "unrecognized arguments: --device-map auto" in capsys.readouterr().err
