import numpy as np
import pytest
import torch

from dynamo import kernels

loops = kernels.loops()
pytestmark = pytest.mark.skipif(loops is None, reason="numba is missing or was not asked for")


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.0, 3.0, 300.0])
def test_the_likeliest_is_the_softmaxs_largest(temperature, spread):
    logits = spread * np.random.default_rng(0).normal(size=(3, 2500)).astype(np.float32) - 50
    expected = torch.softmax(torch.tensor(logits).double() / temperature, dim=1).amax(dim=1)
    np.testing.assert_allclose(
        loops.likeliest(logits, logits.argmax(axis=1), temperature), expected, rtol=1e-4
    )


@pytest.mark.parametrize("n", [1, 4])
def test_conditionals_are_the_softmax_of_risen_logits(n):
    rng = np.random.default_rng(0)
    inner, back, output = (rng.normal(size=s).astype(np.float32) for s in [(n, 16), (24, 16), (90, 24)])
    ids, log_f = rng.permutation(90)[:7], np.log(rng.dirichlet(np.ones(7)))
    u = torch.nn.functional.silu(torch.tensor(inner).double())
    rise = u @ torch.tensor(back).double().T @ torch.tensor(output[ids]).double().T
    expected = torch.softmax(torch.tensor(log_f) + rise / 0.7, dim=1)
    found = loops.conditionals(inner, back, output, ids, log_f, 0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
