"""FLOPs by formula, against brute force and textbooks."""

import itertools

import pytest

from tiny_backprop.integration.jax.flops import convolution_flops, factorization_flops


def test_convolution_taps_by_brute_force():
    sizes = itertools.product((1, 2, 5), (1, 2, 4), (1, 3, 6), (1, 2, 3), (-1, 0, 2), (1, 2, 3), (1, 2, 3))
    for n, kernel, out, stride, low, dilation, kernel_dilation in sizes:
        positions = (o * stride + k * kernel_dilation - low for o, k in itertools.product(range(out), range(kernel)))
        taps = sum(p % dilation == 0 and 0 <= p // dilation < n for p in positions)
        flops = convolution_flops(
            (1, 1, n),
            (1, 1, kernel),
            (1, 1, out),
            (0, 1, 2),
            (0, 1, 2),
            (0, 1, 2),
            strides=(stride,),
            padding=((low, 0),),
            lhs_dilation=(dilation,),
            rhs_dilation=(kernel_dilation,),
        )
        assert flops == 2 * taps, (n, kernel, out, stride, low, dilation, kernel_dilation)


@pytest.mark.parametrize("name", ["lu", "geqrf", "householder_product"])
def test_square_factorizations_have_their_textbook_cubes(name):
    factor = {"lu": 2 / 3, "geqrf": 4 / 3, "householder_product": 4 / 3}[name]
    assert factorization_flops(name, 30, 30) == pytest.approx(factor * 30**3)
