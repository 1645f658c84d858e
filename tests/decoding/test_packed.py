from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from engines import PROMPT, saved_in_half

from dynamo.decoding import packed
from dynamo.decoding.decoder import Decoder
from dynamo.model import packing

HALF = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this machine has no kernel for it"
)


@HALF
def test_weights_that_16_bits_hold_are_kept_in_16_and_others_are_not():
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    assert not packing.fits_half(weight)
    assert packing.fits_half(weight.half().float())
    assert not packing.fits_half(torch.tensor([[1e6]])) and not packing.fits_half(torch.tensor([[1e-9]]))
    assert packing.fits_half(torch.tensor([[65504.0, -0.0, 2.0**-24]]))


@HALF
def test_weights_of_bfloat16_are_kept_in_16_bits_times_a_power_of_two():
    weight = 0.02 * torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    weight[0, :3] = torch.tensor([1e-8, -3e-9, 0.0])  # too small for float16 as they are
    assert not packing.fits_half(weight)
    weight = weight.bfloat16().float()
    assert not torch.equal(weight.half().float(), weight) and packing.fits_half(weight)
    assert packing.power_to_half(weight).hex().startswith("0x1.0000")
    wide = torch.tensor([[1e30, 1.0]]).bfloat16().float()
    assert not packing.fits_half(wide), "no power of two brings both into float16's range"


@pytest.mark.parametrize("saved", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 40])
def test_product_of_few_rows_is_the_float32_product(saved, rows):
    torch.manual_seed(rows)
    weight, bias = torch.randn(70, 33), torch.randn(70)
    weight[0, 0] = 1e-7
    weight = weight.to(saved).float()
    x = torch.randn(rows, 33)
    exact = x.double() @ weight.double().T
    for shift in (None, bias):
        expected = exact if shift is None else exact + shift.double()
        ours = packed.few_rows_product(weight, shift, packing.power_of_copy(weight))(x).double()
        float32 = torch.nn.functional.linear(x, weight, shift).double()
        worst = (float32 - expected).abs().max()
        assert (ours - expected).abs().max() <= max(8 * worst, 1e-4)


@pytest.mark.parametrize("saved", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("build", [tiny_base, tiny_dynamo])
def test_packed_layers_of_a_half_precision_checkpoint_give_the_modules_logits(build, saved):
    model = saved_in_half(build(), saved)
    packed_decoder, plain = Decoder(model), Decoder(model, packed=False)
    assert packed_decoder.packed and not plain.packed
    states = packed_decoder.new_cache(64), plain.new_cache(64)
    rng = np.random.default_rng(0)
    for tokens in (PROMPT, [3], [4, 5], [6, 7, 8], [9] * 12):
        tokens = rng.permutation(tokens).tolist()
        for queries in (None, len(tokens)):
            ours = packed_decoder.forward(states[0], tokens, queries=queries)
            expected = plain.forward(states[1], tokens, queries=queries)
            torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


def test_packing_leaves_the_models_own_weights_alone():
    model = saved_in_half(tiny_dynamo())
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    decoder = Decoder(model)
    decoder.forward(decoder.new_cache(32), PROMPT)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.dtype == torch.float32
