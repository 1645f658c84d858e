import numpy as np
import pytest

from dynamo import kernels

loops = kernels.loops()
pytestmark = pytest.mark.skipif(loops is None, reason="numba is missing or was not asked for")


def eight_bits(rng, width, into):
    bits, scales = rng.integers(-127, 128, (width, into)).astype(np.int8), rng.random(width, np.float32)
    return (bits, scales), bits * scales.astype(np.float64)[:, None]


def four_bits(rng, width, into):
    if not loops.widens_halves():
        pytest.skip("this processor does not widen halves")
    bits = rng.integers(0, 16, (width, into // 32, 32)).astype(np.uint8)
    scales, least = (rng.normal(size=(width, into // 32)).astype(np.float16) for _ in range(2))
    packed = (bits[..., :16] | bits[..., 16:] << 4).reshape(width, -1)
    wide = bits * scales.astype(np.float64)[..., None] + least[..., None]
    return (packed, scales.view(np.uint16), least.view(np.uint16)), wide.reshape(width, into)


@pytest.mark.parametrize("made", [eight_bits, four_bits])
@pytest.mark.parametrize("shape", [(1, 32), (64, 96), (130, 4096 + 32)])
@pytest.mark.parametrize("run", ["product", "product_on_all_cores"])
def test_products_are_those_of_the_weights_and_of_rows_in_16_bits(made, shape, run):
    rng = np.random.default_rng(0)
    weights, wide = made(rng, *shape)
    for rows in (1, 2, 3, 4, 7):
        x = rng.normal(size=(rows, shape[1])).astype(np.float32)
        x[0] *= 1e-4
        found = getattr(loops, run)(x, weights)
        assert found.dtype == np.float32 and found.shape == (rows, shape[0])
        steps = np.abs(x).max(axis=1, keepdims=True) / 32767
        kept = np.round(x / steps) * steps
        assert (np.abs(found - kept @ wide.T) <= 1e-5 * (np.abs(kept) @ np.abs(wide).T)).all()


@pytest.mark.parametrize("made", [eight_bits, four_bits])
def test_the_largest_sums_of_integers_do_not_run_over(made):
    """All at its largest, and more of them along a row than a sum of 32 bits holds."""
    weights, _ = made(np.random.default_rng(0), 1, 3 * 4096)
    weights[0][:] = 127 if made is eight_bits else 255
    x = np.ones((1, 3 * 4096), np.float32)
    expected = 127 * weights[1][0] if made is eight_bits else None
    if expected is None:
        scales, least = (each.view(np.float16).astype(np.float64) for each in weights[1:])
        expected = (15 * scales + least).mean()
    found = loops.product(x, weights)
    assert found.item() == pytest.approx(expected * 3 * 4096, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_stays_one_and_a_row_of_zeros_is_no_such(value):
    x = np.ones((3, 32), np.float32)
    x[0, 1], x[1] = value, 0
    found = loops.product(x, (np.ones((1, 32), np.int8), np.ones(1, np.float32)))
    assert np.isnan(found[0]) and found[1:, 0].tolist() == [0, 32]


@pytest.mark.parametrize("made", [eight_bits, four_bits])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_gated_layer_is_its_norms_products_and_residuals(made, rows):
    rng = np.random.default_rng(0)
    hidden, inner, eps = 64, 96, 1e-5
    shapes = {"project": (80, hidden), "output": (hidden, 32), "expand": (2 * inner, hidden),
              "contract": (hidden, inner)}  # fmt: skip
    parts, wide = {}, {}
    for name, shape in shapes.items():
        parts[name], wide[name] = made(rng, *shape)
    x, attended = (rng.normal(size=(rows, width)).astype(np.float32) for width in (hidden, 32))
    gain = rng.normal(size=hidden).astype(np.float32)

    def normed(states):
        return states / np.sqrt((states**2).mean(axis=1, keepdims=True) + eps) * gain

    found = loops.before_attention(x, gain, eps, parts["project"])
    assert_near(found, normed(x) @ wide["project"].T)
    between = x + attended @ wide["output"].T
    gate, up = np.split(normed(between) @ wide["expand"].T, 2, axis=1)
    with np.errstate(over="ignore"):  # the silu of much less than 0 is 0
        expected = between + (gate / (1 + np.exp(-gate)) * up) @ wide["contract"].T
    behind = (parts[name] for name in ("output", "expand", "contract"))
    found = loops.after_attention(attended, x, gain, eps, *behind)
    assert_near(found, expected)


def assert_near(found, expected):
    assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()
