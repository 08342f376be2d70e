"""Post-training quantisation for inference on the CPU, as DLRM's --quantize-emb-with-bit and --quantize-mlp-with-bit.

A row of 8- or 4-bit numbers q with its own scale and offset stands for q * scale + offset: scale is the row's range
over 255 or 15, offset its least number. 16 bits are half-precision floats: no scale, every kind of table.

Legend: B batch, T tables, L lookups, R rows of the flat table, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mlet.tables import EmbeddingTables

TABLE_BITS = (4, 8, 16, 32)
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
        if len(tables.units) > 1 or unit.combination or unit.rows.weight.shape[1] != tables.dim:
            raise ValueError(
                "4 and 8-bit tables need one row an id: leave out --qr-flag, --md-flag and hash methods of several rows"
            )
        if bits == 4 and tables.dim % 2:
            raise ValueError(f"4-bit tables pack two numbers a byte: a width of {tables.dim} is odd")
        if tables.mode != "sum" or unit.rows.inner_projection is not None or tables.weighted:
            raise ValueError("4 and 8-bit tables need collapsed tables with sum pooling")
        self.specs, self.dim, self.bits = tables.specs, tables.dim, bits
        self.unknown, self.padding, self.special_rows = tables.unknown, tables.padding, tables.special_rows
        self.mode, self.weighted = "sum", False
        self.register_buffer("packed", _PREPACK[bits](unit.rows.weight.detach()))  # uint8 [R, D * bits / 8 + 8 or 4]
        self.numbers, self.maps = unit.numbers[0], tables.maps

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Vectors [B, T, D], as `EmbeddingTables`."""
        tables = len(self.specs)
        if offsets is None:
            rows = self.numbers(ids, slice(None), self.maps).flatten()
            flat = _LOOK_UP[self.bits](self.packed, rows, torch.arange(len(rows)))
            return flat.view(-1, tables, self.dim)
        per_table = offsets.diff().view(tables, -1).sum(dim=1)
        table = torch.repeat_interleave(torch.arange(tables), per_table, output_size=len(ids))
        rows = self.numbers(ids, table, self.maps)
        flat = _LOOK_UP[self.bits](self.packed, rows, offsets[:-1].contiguous())
        return flat.view(tables, -1, self.dim).transpose(0, 1)


class ExportedQuantizedTables(nn.Module):
    """The rows of `QuantizedTables`, bit by bit, read with operations that ONNX has: Gather, Cast, Mul, Add.

    torch's packed rows end in the bytes of their scale and offset; here the two are a float tensor of their own,
    because onnxruntime reads no four bytes as a float.
    """

    def __init__(self, tables: QuantizedTables) -> None:
        super().__init__()
        self.specs, self.dim, self.bits = tables.specs, tables.dim, tables.bits
        self.padding, self.special_rows = tables.padding, tables.special_rows
        width = tables.dim * tables.bits // 8
        scale_type = torch.float32 if tables.bits == 8 else torch.float16
        self.register_buffer("rows", tables.packed[:, :width].contiguous())  # uint8 [R, D or D / 2]
        self.register_buffer("scale_offset", tables.packed[:, width:].contiguous().view(scale_type))  # [R, 2]
        self.numbers, self.maps = tables.numbers, tables.maps

    def forward(self, ids: Tensor, _offsets: None = None) -> Tensor:
        """Vectors [B, T, D] of one-hot ids [B, T]."""
        return self._read(self.numbers(ids, slice(None), self.maps))

    def forward_padded(self, ids: Sequence[Tensor]) -> Tensor:
        """As `EmbeddingTables.forward_padded`; the padding row is zero in any number of bits."""
        pooled = [self._read(self.numbers(bags, t, self.maps)).sum(dim=1) for t, bags in enumerate(ids)]
        return torch.stack(pooled, dim=1)

    def _read(self, rows: Tensor) -> Tensor:
        """Vectors [..., D] of flat row numbers [...]."""
        packed = nn.functional.embedding(rows, self.rows)
        scale, offset = nn.functional.embedding(rows, self.scale_offset).float().split(1, dim=-1)
        numbers = packed.float()
        if self.bits == 4:  # the even columns are the low halves; halves are split as floats, exact and fast everywhere
            high = (numbers / 16).floor()
            numbers = torch.stack([numbers - 16 * high, high], dim=-1).flatten(-2)
        return numbers * scale + offset


def bytes_of(tensors: Iterable[tuple[str, Tensor]], table_bits: int = 32, mlp_bits: int = 32) -> int:
    """Bytes of an inference model (see `mlet.inference.inference_tensors`), quantised or not.

    A row of 8 bits has a float32 scale and offset beside it, one of 4 bits a float16 pair, one of 16 bits nothing.
    """
    total, beside = 0, {4: 4, 8: 8, 16: 0}
    for name, tensor in tensors:
        if name.startswith("table.") and table_bits != 32:
            total += tensor.numel() * table_bits // 8 + len(tensor) * beside[table_bits]
        elif name.endswith("weight") and tensor.dim() == 2 and mlp_bits != 32:  # batch normalisation's have one axis
            total += tensor.numel() * mlp_bits // 8
        else:
            total += tensor.numel() * tensor.element_size()
    return total


def quantize_tables(model: nn.Module, bits: int) -> None:
    """Replace a collapsed model's tables by 4-, 8- or 16-bit ones, in place; 32 leaves them.

    First-order weights stay in float32.
    """
    if bits == 16:
        model.tables = half_tables(model.tables)
    elif bits != 32:
        model.tables = QuantizedTables(model.tables, bits)


def half_tables(tables: EmbeddingTables) -> EmbeddingTables:
    """A copy of collapsed tables with rows in float16; vectors stay float32.

    Raises:
        ValueError: a number above float16's range, naming the table.
    """
    options = {"unknown": tables.unknown, "padding": tables.padding, "mode": tables.mode}
    half = EmbeddingTables(tables.specs, **options, storage=torch.float16)
    half.load_state_dict(tables.state_dict())
    for part in half.parts():
        rows = part.group.part(part.index, part.counted_rows + half.special_rows)
        if not torch.isfinite(rows).all():
            raise ValueError(f"table {half.specs[part.table].name} has numbers above 65504: too large for 16 bits")
    return half


def quantize_mlps(model: nn.Module, bits: int) -> None:
    """Dynamic quantisation of a model's linear layers to 8-bit integers or 16-bit floats, in place; 32 leaves them."""
    if bits not in MLP_BITS:
        raise ValueError(f"linear layers can be quantised to 8 or 16 bits, not {bits}")
    if bits == 32:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the move of this API to torchao
        dtype = torch.qint8 if bits == 8 else torch.float16
        layers = nn.ModuleDict(
            {name: child for name, child in model.named_children() if name not in ("tables", "wide")}
        )
        for name, layer in torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, dtype).items():
            setattr(model, name, layer)
