"""Float32 without TensorFloat-32, in training and in evaluation alike."""

from __future__ import annotations

import torch


def disable_tf32() -> None:
    """Computes float32 matrix products and convolutions in full float32 on GPUs; CPUs have no other mode."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
