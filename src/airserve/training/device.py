"""Where a model is trained and scored: on a GPU when there is one.

Batches are made on the CPU and moved before they are used; scores come back to the CPU. So nothing but the functions
here and the losses knows of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from airserve.errors import UserError

Batch = TypeVar("Batch")
AUTO = "auto"
CPU = torch.device("cpu")


def pick_device(name: str = AUTO) -> torch.device:
    """The device of a name as PyTorch knows it (`cpu`, `cuda`, `cuda:1`); `auto`: a GPU when there is one.

    Raises:
        UserError: if PyTorch does not know it, or cannot use it here.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            "--device",
            expected="auto, or a device that PyTorch can use here",
            got=f"{name!r}: {str(error).splitlines()[0]}",
            remedy="use --device cpu, or install the PyTorch build of your accelerator",
        ) from None
    return device


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next((parameter.device for parameter in module.parameters()), CPU)


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch (a dataclass of tensors and tuples of tensors) on a device; itself on the CPU, where batches are made."""
    if device == CPU:
        return batch

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return tuple(move(part) for part in value) if isinstance(value, tuple) else value

    changes = {field.name: move(getattr(batch, field.name)) for field in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **changes)  # type: ignore[type-var]


def beside(module: nn.Module, batches: Sequence[Batch]) -> Sequence[Batch]:
    """Batches where the module is; moved once, not a step at a time: scorers remember the batches they have seen."""
    device = device_of(module)
    return [moved(batch, device) for batch in batches]
