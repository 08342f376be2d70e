"""Layers that the models share: MLPs, towers that end in a logit, first-order terms.

Legend: B batch, M dense features, T tables, F fields (vectors of a sample), D width, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlet.tables import EmbeddingTables


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes the running statistics for a batch of one sample, which has no variance.

    An epoch's last batch may be one; torch's own refuses it in training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, width]."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Dropout(nn.Dropout):
    """Dropout whose random numbers cost a third of torch's on the CPU: 16 bits an entry instead of a double.

    torch draws them one after the other on one core, which in an MLP of 400 is a third of a training step. The share
    that is dropped is p to the nearest 1/65536; what is kept is divided by the share that is kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if not self.training or not self.p or self.inplace or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        levels = 1 << 16
        dropped = min(round(self.p * levels), levels - 1)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)  # None: to the largest
        lanes = bits.view(torch.int16)[: x.numel()].view(x.shape)
        keep = (lanes >= dropped - levels // 2).to(x.dtype).mul_(levels / (levels - dropped))
        return x * keep


class Linear(nn.Linear):
    """A linear layer whose inputs are padded with zeros where the processor multiplies blocks of them.

    In bfloat16 on the CPU, blocks of 32 (AMX) or 2 (AVX-512) inputs are multiplied at a time, and oneDNN's products of
    367 inputs, DLRM's on Criteo, take half as long again as those of 384.
    """

    BLOCK = 32

    def forward(self, x: Tensor) -> Tensor:
        """[*, inputs] -> [*, outputs]."""
        lacking = -self.in_features % self.BLOCK
        on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not lacking or self.in_features < 4 * self.BLOCK or not on_cpu or torch.compiler.is_compiling():
            return super().forward(x)
        return F.linear(F.pad(x, (0, lacking)), F.pad(self.weight, (0, lacking)), self.bias)


def mlp(widths: Sequence[int], batch_norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with a ReLU behind each; batch normalisation stands before it, dropout behind it."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers.append(Linear(inputs, outputs))
        if batch_norm:
            layers.append(BatchNorm(outputs))
        layers.append(nn.ReLU(inplace=True))  # in place: one pass over memory less
        if dropout:
            layers.append(Dropout(dropout))
    return nn.Sequential(*layers)


class Tower(nn.Sequential):
    """An MLP whose last layer is linear: inputs -> widths[-1] logits, or a vector of the dense features.

    Args:
        inputs: width of what it takes.
        widths: of its layers; one alone is a linear layer.
        batch_norm, dropout: of the hidden layers, see `mlp`.
    """

    def __init__(self, inputs: int, widths: Sequence[int], batch_norm: bool = False, dropout: float = 0.0) -> None:
        hidden = mlp((inputs, *widths[:-1]), batch_norm, dropout)
        super().__init__(*hidden, nn.Linear((inputs, *widths)[-2], widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, widths[-1]]."""
        *hidden, last = self
        for layer in hidden:
            x = layer(x)
        return in_float32(last, x)


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output in float32, under autocast too: bfloat16 has three digits, too few for a logit."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return layer(x)
    with torch.autocast(device, enabled=False):
        return layer(x.float())


def first_order_tables(tables: EmbeddingTables, tasks: int = 1) -> EmbeddingTables:
    """One weight an id (and task) beside each table, for a linear term: same ids, rows and pooling, width S, one layer.

    Where several rows make a vector, several such weights are added, so that the linear term is as small as the table.
    """
    specs = []
    for spec in tables.specs:
        row_map = None if spec.row_map is None else replace(spec.row_map, operation="add")
        specs.append(replace(spec, dim=tasks, width=tasks, inner_dim=0, operation="add", row_map=row_map))
    wide = EmbeddingTables(specs, unknown=tables.unknown, padding=tables.padding, mode=tables.mode)
    wide.maps = tables.maps
    return wide


class FirstOrder(nn.Module):
    """The linear term over dense features, with the bias, one a task; the ids' weights are looked up before.

    .. math:: b + \\langle w, dense \\rangle + \\sum_t w_t[id_t]

    Shapes:
        dense [B, M], wide [B, T, S] -> [B, S].
    """

    def __init__(self, dense_width: int, tasks: int = 1) -> None:
        super().__init__()
        self.dense = nn.Linear(dense_width, tasks, bias=False) if dense_width else None
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, dense: Tensor, wide: Tensor) -> Tensor:
        """As in the class."""
        total = wide.float().sum(dim=1) + self.bias
        return total if self.dense is None else total + in_float32(self.dense, dense)
