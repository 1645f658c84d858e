import numpy as np
import pytest

from dynamo import kernels

loops = kernels.loops()
pytestmark = pytest.mark.skipif(loops is None, reason="numba is missing or was not asked for")
KINDS = {
    "int8": lambda rng, shape: rng.integers(-127, 128, shape).astype(np.int8),
    "half": lambda rng, shape: rng.normal(size=shape).astype(np.float16),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 5), (64, 7), (130, 96)])
@pytest.mark.parametrize("run", ["product", "product_on_all_cores"])
def test_products_are_those_of_the_widened_weights(kind, shape, run):
    if kind == "half" and not loops.widens_halves():
        pytest.skip("this processor does not widen halves")
    rng = np.random.default_rng(0)
    weights, scales = KINDS[kind](rng, shape), rng.random(shape[0], np.float32)
    for rows in (1, 2, 3, 4, 7):
        x = rng.normal(size=(rows, shape[1])).astype(np.float32)
        wide = weights.astype(np.float64) * scales[:, None]
        bits = weights if kind == "int8" else weights.view(np.uint16)
        found = getattr(loops, run)(x, bits, scales)
        assert found.dtype == np.float32 and found.shape == (rows, shape[0])
        assert np.abs(found - x @ wide.T).max() <= 1e-6 * (np.abs(x) @ np.abs(wide).T).max()


def test_what_is_not_a_number_stays_one():
    found = loops.product(np.float32([[np.nan, 1], [1, 1]]), np.ones((1, 2), np.int8), np.ones(1, np.float32))
    assert np.isnan(found[0]) and found[1] == 2
