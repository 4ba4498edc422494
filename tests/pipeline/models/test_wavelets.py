"""Claims about the fixed filters: they are those of the formula, band-pass, and where they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.models.wavelets import Octave, angle, filter_bank
from tests.reference import reference_network

OCTAVES = {Octave.FULL: "full", Octave.FIRST_HALF: "first", Octave.SECOND_HALF: "second"}


@pytest.mark.parametrize("octave", OCTAVES)
@pytest.mark.parametrize("angles", [4, 6])
def test_filters_follow_the_formula(octave: Octave, angles: int) -> None:
    bank = filter_bank(octave, angles, 10, 10)
    phi, psi = reference_network.filters(10, angles, OCTAVES[octave])
    np.testing.assert_allclose(bank.phi, phi.numpy(), atol=1e-12)
    np.testing.assert_allclose(bank.psi, psi.numpy(), atol=1e-12)


@pytest.mark.parametrize("octave", OCTAVES)
def test_wavelets_have_zero_mean_and_stand_at_their_frequency(octave: Octave) -> None:
    size, angles = 64, 8
    bank = filter_bank(octave, angles, size, size)
    np.testing.assert_allclose(bank.psi.sum((1, 2)), 0, atol=1e-12)
    xi = math.pi / math.sqrt(2) if octave is Octave.SECOND_HALF else 3 * math.pi / 4
    for k in range(angles):
        spectrum = np.abs(np.fft.fft2(bank.psi[k]))
        row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
        frequency = np.fft.fftfreq(size)[[row, column]] * 2 * math.pi
        theta = angle(k, angles)
        # A tolerance of one and a half bins: the zero-mean correction moves the peak a little outwards.
        np.testing.assert_allclose(
            np.exp(1j * frequency),
            np.exp(1j * xi * np.array([math.cos(theta), math.sin(theta)])),
            atol=1.5 * 2 * math.pi / size,
        )
