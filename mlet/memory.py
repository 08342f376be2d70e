"""What a training run will need in memory, computed before anything is allocated.

The bill is read off a model built on torch's meta device, which has shapes but no storage; a model of 26 tables of
10^9 rows costs nothing there:

    with torch.device("meta"):
        model = build_model("dlrm", EmbeddingTables(specs), ...)
    bill = bill_of(model, dense_width=13, lookups=26, batch_size=2048, optimizer="adagrad")
    check_fits(bill, available_bytes(torch.device("cpu")))  # from mlet.free_memory

Parameters, optimizer state and the collapsed tables are exact. What a step needs on top is an estimate, and its parts
are listed in `step_bytes`. Memory-mapped files are not in the bill: the system takes their pages back at need.

Legend: B batch, T tables, P parts of one group, L lookups of a batch, R rows of a flat parameter, W stored width in
training (K or d), d width at inference, M dense features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from mlet.free_memory import RUNTIME_BYTES, size_text
from mlet.tables import EmbeddingTables, Part, RowGroup, row_groups

# CUDA context and cuBLAS workspaces. Not measured here: no device was at hand.
CUDA_RUNTIME_BYTES = 1_000_000_000
# glibc keeps freed blocks below 32 MB in its heap, in pieces that the next step's blocks do not fit into: the resident
# size grows to more than what is alive at once. Measured: 1.5 to 2.3, at B = 2048 and 8192.
HEAP_OVERHEAD = 1.8
HEAP_BLOCK_BYTES = 32 << 20
HEAP_LEFT = 0.5  # share of the step's memory that is still resident when the tables are collapsed; measured
ROW_PLAN_INTS = 6  # int64 a lookup: table, position, row number and what embedding_bag keeps for its backward pass
MEAN_CHUNK_ROWS = 1 << 18  # rows that `initialize.set_unknown_rows` averages at a time, as float32 and as float64
WORTH_SAYING = 0.02  # a remedy that saves less than this share of the peak is not named


@dataclass(frozen=True)
class StateSize:
    """Numbers (float32) that an update rule keeps, and the copies of the touched rows that its step makes.

    Attributes:
        per_element: for each weight of a table. per_row: for each row of a table.
        per_dense: for each weight of the other layers.
        row_copies: float32 copies of the summed rows that are alive at once in `step`.
    """

    per_element: int = 0
    per_row: int = 0
    per_dense: int = 0
    row_copies: int = 5


STATE_SIZES = {
    "sgd": StateSize(row_copies=0),
    "adagrad": StateSize(per_element=1, per_dense=1),
    "rwsadagrad": StateSize(per_row=1, per_dense=1, row_copies=3),
    "adam": StateSize(per_element=2, per_dense=2),
}
LARGEST_STATE = StateSize(per_element=2, per_dense=2)  # for a rule that is not listed: no known one keeps more


@dataclass(frozen=True)
class Bill:
    """Bytes that a run needs, by purpose.

    Attributes:
        tables: stored rows in training, special rows and pooling weights included.
        projections: W2 of all tables, and the projections of mixed-dimension tables.
        dense: weights, biases and buffers of the other layers.
        optimizer: state of both.
        gradients: of the dense layers and projections, and of the looked-up rows.
        activations: what a step or an evaluation batch holds besides, see `step_bytes`.
        inference_tables: the tables as they are served, single-layer, with their projections and row maps.
        collapsed: what collapsing allocates beside the trained model: `inference_tables` and a copy of the dense
            layers, or only the latter where all tables are single-layer.
        collapse_scratch: what computing unknown rows holds at that time.
        other: row maps, and what the caller adds; in use all the time.
        runtime: Python, torch and what the process holds before the model is built.
    """

    tables: int
    projections: int
    dense: int
    optimizer: int
    gradients: int
    activations: int
    inference_tables: int
    collapsed: int
    collapse_scratch: int = 0
    other: int = 0
    runtime: int = RUNTIME_BYTES

    @property
    def model(self) -> int:
        """Bytes of the model in training."""
        return self.tables + self.projections + self.dense

    @property
    def training_peak(self) -> int:
        """Bytes in the middle of a step."""
        return self.model + self.optimizer + self.gradients + self.activations + self.other + self.runtime

    @property
    def collapse_peak(self) -> int:
        """Bytes at the end: W1 and the collapsed tables at the same time; optimizer and gradients are gone."""
        left = int(HEAP_LEFT * (self.gradients + self.activations))
        return self.model + max(self.collapsed, self.collapse_scratch) + left + self.other + self.runtime

    @property
    def total(self) -> int:
        """Bytes at the worst moment of the run."""
        return max(self.training_peak, self.collapse_peak)

    def line(self, available: int | None = None) -> str:
        """The bill in one line.

        Args:
            available: bytes to compare the peak with; None leaves the comparison out.
        """
        parts = [f"tables {size_text(self.tables)} (inference {size_text(self.inference_tables)})"]
        if self.optimizer:
            parts.append(f"optimizer state {size_text(self.optimizer)}")
        parts.append(f"dense layers {size_text(self.dense + self.projections)}")
        parts.append(f"activations and gradients {size_text(self.activations + self.gradients)}")
        if self.other:
            parts.append(f"other {size_text(self.other)}")
        parts.append(f"runtime {size_text(self.runtime)}")
        when = "" if self.training_peak >= self.collapse_peak else ", when the tables are collapsed"
        of = "" if available is None else f" of {size_text(available)} available"
        return f"Memory: {', '.join(parts)}; peak about {size_text(self.total)}{of}{when}"

    def __str__(self) -> str:
        return self.line()


def bill_of(
    model: nn.Module,
    *,
    dense_width: int,
    lookups: float,
    batch_size: int,
    optimizer: str | StateSize,
    table_optimizer: str | StateSize | None = None,
    eval_batch_size: int = 0,
    accumulate: int = 1,
    unknown_is_mean: bool = False,
    other: int = 0,
    runtime: int = RUNTIME_BYTES,
) -> Bill:
    """Compute a run's bill.

    Args:
        model: a CTR model (see `mlet.models`), built on the meta device; a real one gives the same bill.
        dense_width: M.
        lookups: mean ids of a sample over all tables: T for one-hot data.
        batch_size: B in training.
        optimizer: rule of the dense layers, a key of `STATE_SIZES` or its own sizes. One that is not listed counts
            as the largest known, two numbers a weight.
        table_optimizer: rule of the tables; None: the same.
        eval_batch_size: B in evaluation; 0: as in training.
        accumulate: batches whose gradients are summed before a step.
        unknown_is_mean: the unknown rows are set to the mean of the trained rows at the end.
        other: bytes of what else stays in memory, such as counters; the tables' row maps are counted already.
        runtime: bytes of the process without the model, see `runtime_bytes`; on CUDA `CUDA_RUNTIME_BYTES`.

    Raises:
        ValueError: a batch below one sample, or negative lookups.
    """
    if min(batch_size, accumulate) < 1 or lookups < 0:
        raise ValueError(f"batch_size={batch_size}, accumulate={accumulate}, lookups={lookups}: too small")
    rule, table_rule = _sizes(optimizer), _sizes(optimizer if table_optimizer is None else table_optimizer)
    groups = row_groups(model)
    sparse = {parameter for group in groups for parameter in _row_parameters(group)}
    projections = [matrix for group in groups for matrix in _projections(group)]
    apart = {*sparse, *projections}
    layers = [*(p for p in model.parameters() if p not in apart), *_other_buffers(model)]
    trained = [p for p in model.parameters() if p not in sparse and p.requires_grad]
    dense = _bytes(layers)
    row_gradients = sum(_row_gradient_bytes(group, _lookups(model, group, lookups) * batch_size) for group in groups)
    step = step_bytes(model, dense_width, lookups, batch_size)
    update = sum(_update_bytes(group, _lookups(model, group, lookups) * batch_size, table_rule) for group in groups)
    evaluation = step_bytes(model, dense_width, lookups, eval_batch_size or batch_size, backward=False)
    return Bill(
        tables=_bytes(sparse),
        projections=_bytes(projections),
        dense=dense,
        optimizer=sum(_state_bytes(p, table_rule.per_element, table_rule.per_row) for p in sparse)
        + sum(_state_bytes(p, rule.per_dense) for p in trained),
        gradients=_bytes(trained) + accumulate * row_gradients,
        activations=max(step, update, evaluation),
        inference_tables=sum(_inference_bytes(group) for group in groups) + model.tables.maps.nbytes,
        collapsed=dense + sum(_inference_bytes(group) for group in _collapsing_groups(model)),
        collapse_scratch=_mean_scratch(model) if unknown_is_mean else 0,
        other=other + model.tables.maps.nbytes,
        runtime=runtime,
    )


def step_bytes(model: nn.Module, dense_width: int, lookups: float, batch_size: int, backward: bool = True) -> int:
    """Estimate what one batch holds at its peak besides weights, gradients of weights and optimizer state.

    Counted are: tensors that autograd keeps of everything behind the tables (exact, from a forward pass without
    storage), twice the largest of them for the values and gradients in flight, the pooled and projected vectors
    with their gradients, and `ROW_PLAN_INTS` integers a lookup; all that with the allocator's waste on top.

    Args:
        model, dense_width, lookups, batch_size: as in `bill_of`.
        backward: False for an evaluation batch, which needs no gradients.
    """
    kept = _saved_sizes(model, dense_width, batch_size)
    copies = 3 if backward else 1  # a value; its gradient; and that once more in another layout
    blocks = [*kept, *[max(kept, default=0)] * 2]
    for group in row_groups(model):
        parts = len(group.first_row)
        widths = [group.weight.shape[1], *(matrix.shape[2] for matrix in _projections(group))]
        blocks += [4 * batch_size * parts * width for width in widths for _ in range(copies)]
        blocks += [int(8 * batch_size * _lookups(model, group, lookups))] * ROW_PLAN_INTS
    return _resident(blocks)


class _BehindTables(nn.Module):
    """Everything behind a model's tables, as a module that `functional_call` can run on other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, *looked_up: Tensor) -> Tensor:
        return self.model.vectors_to_probability(dense, *looked_up)


def _saved_sizes(model: nn.Module, dense_width: int, batch_size: int) -> list[int]:
    """Bytes of each tensor that the backward pass of everything behind the tables needs, weights left out.

    It runs on fake tensors, which have no storage but pass for CPU tensors: autocast and the like know no meta device.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(_storage(tensor), tensor.detach())  # holding it keeps its storage's number from being reused
        return tensor

    size = max(2, batch_size)  # batch normalisation refuses a batch of one
    behind = _BehindTables(model)
    with FakeTensorMode(), torch.device("cpu"), torch.enable_grad():
        weights = {name: _like(value) for name, value in [*behind.named_parameters(), *behind.named_buffers()]}
        dense = torch.empty(size, dense_width)
        looked_up = [torch.empty(size, len(t.specs), t.dim, requires_grad=True) for t in model.table_sets]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(behind, weights, (dense, *looked_up))
    own = {_storage(value) for value in weights.values()}
    return [tensor.untyped_storage().nbytes() for number, tensor in kept.items() if number not in own]


def _like(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, requires_grad=value.requires_grad)


def _storage(tensor: Tensor) -> int:
    """A number that tensors over the same memory share; data_ptr is 0 for all on the meta device."""
    return tensor.untyped_storage()._cdata


def _resident(blocks: Iterable[int]) -> int:
    """Bytes that the process grows by: small blocks live in the heap, large ones are mapped one by one."""
    return int(sum(size * (HEAP_OVERHEAD if size < HEAP_BLOCK_BYTES else 1) for size in blocks))


def _lookups(model: nn.Module, group: RowGroup, lookups: float) -> float:
    """Of a sample's lookups those that read this group, every table taken for equal."""
    units = [unit for tables in model.table_sets for unit in tables.units]
    times = sum(each is group for unit in units for each in unit.groups)
    return times * lookups * len(group.first_row) / len(model.tables.specs)


def _row_gradient_bytes(group: RowGroup, rows: float) -> int:
    """Sparse gradients of a batch: values and row numbers, one row a lookup, repeated ids not yet summed."""
    return sum(_resident([int(rows * p.shape[1] * p.element_size()), int(rows * 8)]) for p in _row_parameters(group))


def _update_bytes(group: RowGroup, rows: float, rule: StateSize) -> int:
    """What an optimizer step allocates: copies of the rows touched, repeated ids summed."""
    touched = min(rows, group.weight.shape[0])
    return _resident([int(touched * group.weight.shape[1] * 4)] * rule.row_copies)


def _state_bytes(parameter: Tensor, per_element: int, per_row: int = 0) -> int:
    return 4 * (per_element * parameter.numel() + per_row * parameter.shape[0])


def _inference_bytes(group: RowGroup) -> int:
    """The group as it is served: [R, d] in float32, and the mixed-dimension projection."""
    width = group.weight.shape[1] if group.inner_projection is None else group.inner_projection.shape[2]
    mixed = [] if group.projection is None else [group.projection]
    return group.weight.shape[0] * width * 4 + _bytes(mixed)


def _collapsing_groups(model: nn.Module) -> list[RowGroup]:
    """Groups that collapsing copies: all of a set of tables once one of them is not served as it is trained."""
    every = (module for module in model.modules() if isinstance(module, EmbeddingTables))
    return [group for tables in every if not tables.is_collapsed for group in row_groups(tables)]


def _mean_scratch(model: nn.Module) -> int:
    """What averaging the rows of one table after another holds at most."""
    return max(_mean_scratch_of(part) for tables in model.table_sets for part in tables.parts())


def _mean_scratch_of(part: Part) -> int:
    """Rows of a table that are averaged at a time: as they are, and float64 to sum them."""
    rows, weight = min(MEAN_CHUNK_ROWS, part.counted_rows), part.group.weight
    copies = 1 if part.group.pooling_weight is None else 2
    return rows * weight.shape[1] * (copies * weight.element_size() + 8)


def _row_parameters(group: RowGroup) -> list[Tensor]:
    """Parameters with sparse gradients."""
    return [group.weight] if group.pooling_weight is None else [group.weight, group.pooling_weight]


def _projections(group: RowGroup) -> list[Tensor]:
    return [matrix for matrix in (group.inner_projection, group.projection) if matrix is not None]


def _other_buffers(model: nn.Module) -> list[Tensor]:
    """Buffers outside the tables, whose own are a few numbers a table."""
    inside = {id(b) for module in model.modules() if isinstance(module, EmbeddingTables) for b in module.buffers()}
    return [buffer for buffer in model.buffers() if id(buffer) not in inside]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _sizes(rule: str | StateSize) -> StateSize:
    return rule if isinstance(rule, StateSize) else STATE_SIZES.get(rule, LARGEST_STATE)


def check_fits(
    bill: Bill, available: int | None, remedies: Callable[[], Mapping[str, Bill | None]] = dict, where: str = "memory"
) -> None:
    """Refuse a run that cannot fit.

    Args:
        bill: what it needs.
        available: bytes that there are, see `available_bytes`; None: not known, nothing is refused.
        remedies: called only for a refusal; what the user could change, in the user's words, -> the bill after that,
            or None where it is not known beforehand (something that makes the tables smaller). Those that help too
            little are left out, the best come first.
        where: names the memory in the message, such as "GPU memory".

    Raises:
        ValueError: with the sum, what is available, and the remedies that help.
    """
    if available is None or bill.total <= available:
        return
    hints = remedy_texts(bill, available, remedies())
    advice = f"; what would shrink it: {', '.join(hints)}" if hints else ""
    raise ValueError(
        f"this run needs about {size_text(bill.total)} of {where}, {size_text(available)} are available "
        f"({bill.line().removeprefix('Memory: ')}){advice}"
    )


def remedy_texts(bill: Bill, available: int, remedies: Mapping[str, Bill | None]) -> list[str]:
    """One phrase for each remedy that helps, with the peak that it leads to, the smallest first."""
    known = sorted(((after.total, text) for text, after in remedies.items() if after is not None), key=lambda x: x[0])
    texts = [
        f"{text} ({size_text(peak)}{', fits' if peak <= available else ''})"
        for peak, text in known
        if bill.total - peak >= WORTH_SAYING * bill.total
    ]
    in_tables = bill.tables + bill.optimizer + bill.collapsed
    if in_tables >= bill.total / 2:
        texts += [text for text, after in remedies.items() if after is None]
    return texts
