import numpy as np
import pytest
import torch

from dynamo import kernels
from dynamo.kernels.layouts import in_16_bits, in_32_bits

loops = kernels.loops()
pytestmark = pytest.mark.skipif(loops is None, reason="numba is missing or was not asked for")


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.0, 3.0, 300.0])
def test_the_likeliest_is_the_softmaxs_largest(temperature, spread):
    logits = spread * np.random.default_rng(0).normal(size=(3, 2500)).astype(np.float32) - 50
    expected = torch.softmax(torch.tensor(logits).double() / temperature, dim=1).amax(dim=1)
    np.testing.assert_allclose(loops.likeliest(logits, temperature), expected, rtol=1e-4)


def dense(state, chunks, embedding, matrices, output, ids, log_f, temperature):
    from_hidden, from_tokens, back = (None if each is None else each.double() for each in matrices)
    inner = 0 if from_hidden is None else from_hidden @ state.double()
    for weight, column in zip(from_tokens, chunks.T[-len(from_tokens) :], strict=True):
        row = embedding[column].double()
        row = row * torch.rsqrt(row.square().mean(1, keepdim=True) + torch.finfo(torch.float32).eps)
        inner = inner + row @ weight.T
    rise = torch.nn.functional.silu(inner) @ back.T @ output[ids].double().T
    return torch.softmax(log_f + rise / temperature, dim=1)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(("n", "length"), [(1, 1), (2, 2), (4, 3)])
def test_conditionals_after_chunks_are_the_softmax_of_risen_logits(n, length, half, seen):
    if half and not loops.widens_halves():
        pytest.skip("this processor does not widen halves")
    rng = torch.Generator().manual_seed(0)
    rank, hidden, vocab = 16, 24, 90
    places = min(length, 2)
    kept = [
        torch.randn(*size, generator=rng).half().float()
        for size in [(rank, hidden), (places, rank, hidden), (hidden, rank)]
    ]
    matrices = (kept[0] if seen else None, *kept[1:])
    flat = (lambda each: in_16_bits(each, 1.0)) if half else in_32_bits
    own, back = flat(kept[0]) if seen else flat(kept[0])[:0], flat(kept[2])
    arrays = own.numpy(), torch.stack([flat(each) for each in kept[1]]).numpy(), back.numpy()
    state, embedding, output = (
        torch.randn(*size, generator=rng) for size in [(hidden,), (vocab, hidden), (vocab, hidden)]
    )
    chunks, ids = torch.randint(vocab, (n, length), generator=rng), torch.randperm(vocab, generator=rng)[:19]
    log_f = torch.log_softmax(torch.randn(19, generator=rng).double(), 0)
    expected = dense(state, chunks, embedding, matrices, output, ids, log_f, 0.7)
    given = (
        state.numpy(), chunks.numpy(), embedding.numpy(), rank, arrays, output.numpy(), ids.numpy(),
        log_f.numpy(), 0.7,
    )  # fmt: skip
    for threads in (1, 2):
        loops.use_threads(threads)
        np.testing.assert_allclose(loops.after_chunks(*given, threads), expected, rtol=1e-3, atol=1e-9)
