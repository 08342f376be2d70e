"""Post-training quantisation for inference on the CPU, as DLRM's --quantize-emb-with-bit and --quantize-mlp-with-bit.

Legend: B batch, T tables, L lookups, R rows of the flat table, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlet.tables import EmbeddingTables, PlainTables

TABLE_BITS = (4, 8, 32)
MLP_BITS = (8, 16, 32)

_PREPACK = {4: torch.ops.quantized.embedding_bag_4bit_prepack, 8: torch.ops.quantized.embedding_bag_byte_prepack}
_LOOK_UP = {
    4: torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
    8: torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
}


class QuantizedTables(nn.Module):
    """Collapsed tables as 8- or 4-bit integers with a scale and an offset a row; takes the place of EmbeddingTables.

    Args:
        tables: plain single-layer tables of one width.
        bits: 8 or 4.

    Raises:
        ValueError: tables that are not plain and collapsed, pooling other than sum, or another number of bits.
    """

    def __init__(self, tables: EmbeddingTables, bits: int) -> None:
        super().__init__()
        if bits not in _PREPACK:
            raise ValueError(f"tables can be quantised to 4 or 8 bits, not {bits}")
        unit = tables.units[0]
        if len(tables.units) > 1 or not isinstance(unit, PlainTables) or unit.rows.weight.shape[1] != tables.dim:
            raise ValueError("4 and 8-bit tables need plain tables: leave out --qr-flag and --md-flag")
        if bits == 4 and tables.dim % 2:
            raise ValueError(f"4-bit tables pack two numbers a byte: a width of {tables.dim} is odd")
        if tables.mode != "sum" or unit.rows.inner_projection is not None or tables.weighted:
            raise ValueError("4 and 8-bit tables need collapsed tables with sum pooling")
        self.specs, self.dim, self.bits = tables.specs, tables.dim, bits
        self.register_buffer("packed", _PREPACK[bits](unit.rows.weight.detach()))  # uint8 [R, D * bits / 8 + 8 or 4]
        self.register_buffer("first_row", unit.rows.first_row.clone(), persistent=False)

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Vectors [B, T, D], as `EmbeddingTables`."""
        tables = len(self.specs)
        if offsets is None:
            rows = (ids + self.first_row).flatten()
            flat = _LOOK_UP[self.bits](self.packed, rows, torch.arange(len(rows)))
            return flat.view(-1, tables, self.dim)
        per_table = offsets.diff().view(tables, -1).sum(dim=1)
        rows = ids + torch.repeat_interleave(self.first_row, per_table, output_size=len(ids))
        flat = _LOOK_UP[self.bits](self.packed, rows, offsets[:-1].contiguous())
        return flat.view(tables, -1, self.dim).transpose(0, 1)


def bytes_of(tensors: Iterable[tuple[str, Tensor]], table_bits: int = 32, mlp_bits: int = 32) -> int:
    """Bytes of an inference model (see `mlet.collapse.inference_tensors`), quantised or not.

    A row of 8 bits has a float32 scale and offset beside it, one of 4 bits a float16 pair.
    """
    total = 0
    for name, tensor in tensors:
        if name.startswith("table.") and table_bits != 32:
            total += tensor.numel() * table_bits // 8 + len(tensor) * (8 if table_bits == 8 else 4)
        elif name.endswith("weight") and mlp_bits != 32:
            total += tensor.numel() * mlp_bits // 8
        else:
            total += tensor.numel() * tensor.element_size()
    return total


def quantize_tables(model: nn.Module, bits: int) -> None:
    """Replace a collapsed model's tables by 4- or 8-bit ones, in place; 32 leaves them."""
    if bits != 32:
        model.tables = QuantizedTables(model.tables, bits)


def quantize_mlps(model: nn.Module, bits: int) -> None:
    """Dynamic quantisation of a model's linear layers to 8-bit integers or 16-bit floats, in place; 32 leaves them."""
    if bits not in MLP_BITS:
        raise ValueError(f"linear layers can be quantised to 8 or 16 bits, not {bits}")
    if bits == 32:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the move of this API to torchao
        dtype = torch.qint8 if bits == 8 else torch.float16
        for name in ("bottom", "top"):
            quantized = torch.ao.quantization.quantize_dynamic(getattr(model, name), {nn.Linear}, dtype)
            setattr(model, name, quantized)
