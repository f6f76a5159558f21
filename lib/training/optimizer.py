"""Adam as every stage uses it."""

from typing import Any

import torch


def adam(groups: list[dict[str, Any]], device: torch.device, **options: Any) -> torch.optim.Adam:
    """On CUDA one kernel for all weights. A state of another device can be loaded."""
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.Adam(groups, fused=fused, **options)
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: state | {"param_groups": [group | {"fused": fused} for group in state["param_groups"]]})
    return optimizer
