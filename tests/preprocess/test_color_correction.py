"""Colour corrections against the formulas they stand for, in float64."""

import numpy as np
import pytest

from preprocess.color_correction import POLYNOMIALS, AffineColor, CheungColor, expanded, to_linear, to_srgb

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (40, 30, 3)).astype(np.uint8)


def test_affine_is_the_published_formula():
    matrix, offset = np.eye(3) + RANDOM.normal(0.0, 0.1, (3, 3)), RANDOM.normal(0.0, 0.05, 3)
    expected = np.clip(PIXELS / 255.0 @ matrix + offset, 0.0, 1.0) * 255.0
    assert np.abs(AffineColor(matrix, offset).apply(PIXELS) - expected).max() <= 0.501


@pytest.mark.parametrize(("terms", "monomials"), [
    (3, lambda r, g, b: [r, g, b]),
    (4, lambda r, g, b: [r, g, b, 1]),
    (5, lambda r, g, b: [r, g, b, r * g * b, 1]),
    (8, lambda r, g, b: [r, g, b, r * g, r * b, g * b, r * g * b, 1]),
    (11, lambda r, g, b: [r, g, b, r * g, r * b, g * b, r**2, g**2, b**2, r * g * b, 1]),
    (16, lambda r, g, b: [r, g, b, r * g, r * b, g * b, r**2, g**2, b**2, r * g * b, r**2 * g, g**2 * b, b**2 * r, r**3, g**3, b**3]),
    (22, lambda r, g, b: [r, g, b, r * g, r * b, g * b, r**2, g**2, b**2, r * g * b, r**2 * g, g**2 * b, b**2 * r, r**2 * b, g**2 * r, b**2 * g,
                          r**3, g**3, b**3, r**2 * g * b, r * g**2 * b, r * g * b**2]),
])
def test_cheung_is_the_polynomial_of_its_size_in_linear_light(terms, monomials):
    matrix = np.zeros((3, terms))
    matrix[:, :3] = np.eye(3)
    matrix += RANDOM.normal(0.0, 0.05, matrix.shape)
    light = to_linear(PIXELS.reshape(-1, 3) / 255.0)
    expected = np.array([matrix @ np.array(monomials(*color), dtype=float) for color in light])
    expected = 255.0 * to_srgb(np.clip(expected, 0.0, 1.0)).reshape(PIXELS.shape)
    assert np.abs(CheungColor(matrix).apply(PIXELS) - expected).max() < 0.6


def test_every_polynomial_has_as_many_terms_as_its_name_and_no_term_twice():
    assert sorted(POLYNOMIALS) == [3, 4, 5, 7, 8, 10, 11, 14, 16, 17, 19, 20, 22]
    for terms, monomials in POLYNOMIALS.items():
        assert terms == len(set(monomials)) and expanded(np.ones((2, 3)), terms).tolist() == [[1.0] * terms] * 2


def test_the_srgb_transfer_is_continuous_monotonous_and_invertible():
    values = np.linspace(0.0, 1.0, 2001)
    light = to_linear(values)
    assert (np.diff(light) > 0).all() and np.abs(to_srgb(light) - values).max() < 1e-6
    assert light[0] == 0.0 and light[-1] == pytest.approx(1.0) and to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)
    assert (CheungColor(np.eye(3)).apply(PIXELS) == PIXELS).all()
