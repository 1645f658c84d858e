import numpy as np
import pytest
import torch

from dynamo import kernels
from dynamo.kernels.layouts import in_4_bits, in_8_bits, in_16_bits, in_32_bits

loops = kernels.loops()
pytestmark = pytest.mark.skipif(loops is None, reason="numba is missing or was not asked for")


def eight_bits(rng, width, into):
    bits, scales = rng.integers(-127, 128, (width, into)).astype(np.int8), rng.random(width, np.float32)
    packed = in_8_bits(torch.from_numpy(bits), torch.from_numpy(scales))
    return packed.numpy(), bits * scales.astype(np.float64)[:, None]


def four_bits(rng, width, into):
    if not loops.widens_halves():
        pytest.skip("this processor does not widen halves")
    bits = rng.integers(0, 16, (width, into))
    grids = [torch.from_numpy(rng.normal(size=(width, into // 32))).half() for _ in range(2)]
    scales, least = (each.double().numpy().repeat(32, axis=1) for each in grids)
    return in_4_bits(torch.from_numpy(bits), *grids).numpy(), bits * scales + least


def sixteen_bits(rng, width, into):
    if not loops.widens_halves():
        pytest.skip("this processor does not widen halves")
    weight = torch.from_numpy(rng.normal(size=(width, into))).half() / 64
    return in_16_bits(weight.float(), 64.0).numpy(), weight.double().numpy()


def thirty_two_bits(rng, width, into):
    weight = torch.from_numpy(rng.normal(size=(width, into)).astype(np.float32))
    return in_32_bits(weight).numpy(), weight.double().numpy()


def product(x, weights, plus, threads):
    if threads == 1:
        return loops.product(x, weights, plus)
    loops.use_threads(threads)
    return loops.product_on_all_cores(x, weights, plus, threads)


def rounded(x, made):
    """As products with these weights have it: to 16 bits by the row's largest number, or to 8 by sixteens."""
    if made in (sixteen_bits, thirty_two_bits):
        return x
    together, most = (x.shape[1], 32767) if made is eight_bits else (16, 127)
    some = x.reshape(len(x), -1, together)
    steps = np.abs(some).max(axis=2, keepdims=True) / most
    return (np.round(some / steps) * steps).reshape(x.shape)


@pytest.mark.parametrize("made", [eight_bits, four_bits, sixteen_bits, thirty_two_bits])
@pytest.mark.parametrize("shape", [(1, 32), (64, 96), (130, 4096 + 32)])
def test_products_are_those_of_the_weights_and_of_rounded_rows(made, shape):
    rng = np.random.default_rng(0)
    weights, wide = made(rng, *shape)
    bias = rng.normal(size=(1, shape[0])).astype(np.float32)
    for rows in (1, 2, 3, 4, 7):
        x = rng.normal(size=(rows, shape[1])).astype(np.float32)
        x[0] *= 1e-4
        kept = rounded(x, made)
        bound = 1e-5 * (np.abs(kept) @ np.abs(wide).T) + 1e-6
        for plus in (bias, rng.normal(size=(rows, shape[0])).astype(np.float32)):
            found = product(x, weights, plus, threads=1)
            assert found.dtype == np.float32 and found.shape == (rows, shape[0])
            assert (np.abs(found - kept @ wide.T - plus) <= bound).all()
            # Each sum is one thread's work, the same whichever takes it; two loops may round it apart.
            several = loops.product_on_all_cores(x, weights, plus, 1)
            assert (np.abs(several - kept @ wide.T - plus) <= bound).all()
            np.testing.assert_array_equal(product(x, weights, plus, threads=3), several)


def test_every_half_precision_number_is_widened_exactly():
    if not loops.widens_halves():
        pytest.skip("this processor does not widen halves")
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)].astype(np.float32)
    weights = in_16_bits(torch.nn.functional.pad(torch.from_numpy(numbers)[:, None], (0, 7)), 1.0).numpy()
    found = loops.product(np.eye(1, 8, dtype=np.float32), weights, np.zeros((1, len(numbers)), np.float32))
    np.testing.assert_array_equal(found[0], numbers)


@pytest.mark.parametrize("made", [eight_bits, four_bits])
def test_the_largest_sums_of_integers_do_not_run_over(made):
    """All at their largest, and many of them along a row."""
    made(np.random.default_rng(0), 8, 32)  # or skip where there is none
    width, most = 3 * 4096, 127 if made is eight_bits else 15
    bits, one = torch.full((1, width), most), torch.ones(1, 1)
    if made is eight_bits:
        weights = in_8_bits(bits.to(torch.int8), one[0])
    else:
        weights = in_4_bits(bits, one.expand(1, width // 32), 0 * one.expand(1, width // 32))
    found = loops.product(np.ones((1, width), np.float32), weights.numpy(), np.zeros((1, 1), np.float32))
    assert found.item() == pytest.approx(most * width, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("made", [eight_bits, four_bits])
def test_what_is_not_a_number_stays_one_and_a_row_of_zeros_is_no_such(made, value):
    x = np.ones((3, 32), np.float32)
    x[0, 1], x[1] = value, 0
    weights, wide = made(np.random.default_rng(0), 1, 32)
    found = loops.product(x, weights, np.zeros((1, 1), np.float32))
    assert np.isnan(found[0]) and found[1] == 0 and found[2] == pytest.approx(wide.sum(), rel=1e-3)


def test_threads_take_what_is_left_of_the_others_shares_and_find_nothing_when_all_is_done():
    from dynamo.kernels import products, sharing

    counts, x = sharing.new_counts(1, 3), np.ones((1, 32), np.float32)
    weights, out = (
        in_8_bits(torch.ones(200, 32, dtype=torch.int8), torch.ones(200)).numpy(),
        np.zeros((1, 200)),
    )
    out = out.astype(np.float32)
    given = 0, x, weights, np.zeros((1, 200), np.float32), out
    products.share((counts, 1, 3), *given)
    assert (out == 32).all(), "one alone does everything"
    out[:] = 0
    products.share((counts, 0, 3), *given)
    assert not out.any(), "who comes late changes nothing"
    taken = [sharing.next_task((sharing.new_counts(1, 3), me, 3), 0, 7) for me in range(3)]
    assert taken == [0, 2, 4], "each begins at its own share"
