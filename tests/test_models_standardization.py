"""Claims about the running statistics of standardization, checked against PyTorch's own mean and variance."""

from __future__ import annotations

import torch

from pipeline.models.scattering import Standardization


def test_running_statistics_move_a_tenth_of_the_way_to_mean_and_unbiased_variance() -> None:
    channels, parts = 3, 2
    standardization = Standardization(channels, torch.arange(parts * channels))
    features = torch.randn(2, 2, 3, parts * channels)  # 12 values a channel: n/(n−1) is 9 % more than 1
    standardization(features)
    z = torch.complex(*features.flatten(0, -2).unflatten(1, (parts, channels)).unbind(1))
    mean = torch.complex(*standardization.running_mean)
    torch.testing.assert_close(mean, 0.1 * z.mean(0))
    torch.testing.assert_close(standardization.running_var, 0.9 + 0.1 * z.var(0))  # of a complex z: E|z − mean|²
