"""Private parts of torch: all that this package touches, read in torch 2.14. Tests fail where a version differs.

==============================  =======================================================================================
`_orig_mod`                     the module that `torch.compile` wrapped; there is no public way to it
`_get_ddp_logging_data`         times of DistributedDataParallel's communication, which it measures but does not publish
`FakeTensorMode`                runs operations without memory, and knows the storages that they share
`UntypedStorage._cdata`         identity of a storage
==============================  =======================================================================================
"""

from __future__ import annotations

from typing import Any

from torch import UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

__all__ = ["FakeTensorMode", "communication_times", "storage_identity"]


def communication_times(network: nn.Module) -> dict[str, Any] | None:
    """What DistributedDataParallel measured in its first steps and in every hundredth; None for another module."""
    wrapper = getattr(network, "_orig_mod", network)
    if not isinstance(wrapper, DistributedDataParallel):
        return None
    measured: dict[str, Any] = wrapper._get_ddp_logging_data()
    return measured


def storage_identity(storage: UntypedStorage) -> int:
    """Equal for two tensors that share their memory, as long as one of them lives."""
    identity: int = storage._cdata
    return identity
