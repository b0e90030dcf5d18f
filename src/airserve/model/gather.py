"""Row gathers, those inside a batch written so that they export as one ONNX Gather.

Shapes: B requests, N rows in each, X values of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def every_row(values_NX: Tensor) -> Tensor:
    """The rows of a table, int32 [N], where the table is."""
    return torch.arange(len(values_NX), dtype=torch.int32, device=values_NX.device)


def gather_rows(values_BNX: Tensor, index_B: Tensor) -> Tensor:
    """Take rows of each request's own block.

    A flat Gather over [B*N, X] copies whole rows; GatherElements would need an index as large as its output.

    Args:
        values_BNX: any dtype, [B, N, X].
        index_B: int32, [B, ...], 0 <= index < N.

    Returns:
        [B, ..., X], dtype of `values_BNX`.
    """
    batch, rows = values_BNX.shape[0], values_BNX.shape[1]
    offsets_B = torch.arange(batch, dtype=torch.int32, device=index_B.device) * rows
    offsets_B = offsets_B.reshape([-1] + [1] * (index_B.dim() - 1))
    return F.embedding(index_B + offsets_B, values_BNX.reshape(-1, values_BNX.shape[-1]))
