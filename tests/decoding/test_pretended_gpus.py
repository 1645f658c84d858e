"""Passes on GPUs that are not here: torch has fake tensors with shape, type and device and no numbers, which
refuse to be mixed as real ones of different devices do."""

from functools import partial

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from conftest import tiny_base, tiny_dynamo
from device_maps import IDS, layers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from dynamo import SamplingOptions, kernels
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.offloaded import decoder_for
from dynamo.sampling import candidates


def pretend(module, device):
    """Put a module on a device that is not there: its tensors have shape and device, and no numbers."""
    for each in module.modules():
        for held in (each._parameters, each._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    held[name] = torch.nn.Parameter(fake) if held is each._parameters else fake


class WithoutCuda(TorchFunctionMode):
    """What torch's Python side does itself, by plain operators: it asks for a CUDA that this build lacks."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.__getitem__:
            return view(*arguments)
        if function is torch.Tensor.__setitem__:
            tensor, index, value = arguments
            return view(tensor, index).add_(value)  # there are no numbers to be put there
        if function is torch.Tensor.copy_:
            return arguments[0].add_(arguments[1])
        if function is torch.tensor and keywords:
            return torch.zeros(len(arguments[0]), dtype=torch.int64, device=keywords["device"])
        if function is torch.Tensor.contiguous:
            return arguments[0].clone(memory_format=torch.contiguous_format)
        return function(*arguments, **(keywords or {}))


def view(tensor, index):
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in index:
        given = sum(each is not None and each is not Ellipsis for each in index)
        at = index.index(Ellipsis)
        index[at : at + 1] = [slice(None)] * (tensor.ndim - given)
    place = 0
    for each in index:
        if isinstance(each, int):
            tensor = tensor.select(place, each)
            continue
        if each is None:
            tensor = tensor.unsqueeze(place)
        elif isinstance(each, slice):
            start, stop, _ = each.indices(tensor.shape[place])
            tensor = tensor.narrow(place, start, stop - start)
        else:
            tensor = tensor.index_select(place, each)
        place += 1
    return tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [tiny_base, tiny_dynamo, partial(tiny_dynamo, head_source="last")])
def test_on_a_gpu_every_sum_is_of_tensors_there_in_the_models_numbers(make, dtype):
    model = make().to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), WithoutCuda(), torch.no_grad():
        pretend(model, "cuda:0")
        decoder = decoder_for(model)
        assert isinstance(decoder, Decoder) and not decoder.packed
        state = decoder.new_cache(128)
        for chunk, queries in ((IDS, None), ([8], None), ([8, 9, 10], 2), ([1, 2], None)):
            logits = decoder.forward(state, chunk, None, queries)
            assert (str(logits.device), logits.dtype) == ("cuda:0", dtype)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_over_two_gpus_every_sum_is_of_tensors_on_one_of_them():
    far = ("backbone.gpt_neox.layers.1", "backbone.gpt_neox.layers.2", "token_heads.0")
    places = {name: "cuda:1" if name in far else "cuda:0" for name in layers()}
    model = tiny_dynamo()
    with FakeTensorMode(allow_non_fake_inputs=True), WithoutCuda(), torch.no_grad():
        for name, place in places.items():
            pretend(model.get_submodule(name), place)
        unhooked = Decoder(model)
        with pytest.raises(RuntimeError, match="two devices, cuda:0 and cuda:1"):
            unhooked.forward(unhooked.new_cache(64), IDS)
        dispatch_model(model, places, main_device="cuda:0")
        decoder = decoder_for(model)
        state = decoder.new_cache(64)
        for chunk, queries in ((IDS, None), ([8, 9, 10], 2)):
            logits = decoder.forward(state, chunk, None, queries)
            assert str(logits.device) == "cuda:0"
        assert [str(device) for device, _ in decoder._places] == [f"cuda:{i}" for i in (0, 1, 1, 1, 0)]
        kept = {str(part.cache.device): part.cache.shape[1] for part in state.parts}
        assert kept == {"cuda:0": 2, "cuda:1": 3}


@pytest.mark.parametrize(("scale", "whole"), [(2.5, False), (0.0, True)])
def test_half_precision_logits_tie_and_few_are_brought_to_the_host_for_it(monkeypatch, scale, whole):
    """A GPU's are in bfloat16; of an equal pair the lower id is the likelier, as everywhere."""
    monkeypatch.setattr(kernels, "loops", lambda: None)
    asked = []
    ties = candidates._top_k_of_ties
    monkeypatch.setattr(candidates, "_top_k_of_ties", lambda row, k: asked.append(k) or ties(row, k))
    logits = (scale * torch.randn(3, 50304, generator=torch.Generator().manual_seed(3))).bfloat16()
    chosen = candidates.top_candidates(logits, SamplingOptions(top_k=50))
    dense = logits.float().numpy()
    expected = np.argsort(-dense, axis=1, kind="stable")[:, :50]
    last = np.take_along_axis(dense, expected, axis=1)[:, -1:]
    assert ((dense == last).sum(axis=1) > 1).any(), "a fiftieth has equals"
    assert np.array_equal(chosen.ids, expected) and bool(asked) == whole
    assert np.allclose(chosen.f.sum(axis=1), 1.0)
