"""Phase-collapse networks in plain PyTorch: settings → a network that maps pixels to logits.

wavelets.py           the fixed filters, as numbers
wavelet_transform.py  filtering, as matrix products
tiling.py             how images are cut into the windows that are filtered
nonlinearities.py     ρ, the non-linearities
batch_stats.py        means and variances of a batch
projection.py         the learned part of a block: standardize and project
fused.py              operations with hand-written backward passes, beside plain versions
scattering.py         blocks, classifier, network
resnet.py             residual networks, for comparison
image_network.py      settings → network
"""

from pipeline.models.image_network import ImageNetwork, build, multiply_adds, parameters
from pipeline.models.scattering import ScatteringNetwork

__all__ = ["ImageNetwork", "ScatteringNetwork", "build", "multiply_adds", "parameters"]
