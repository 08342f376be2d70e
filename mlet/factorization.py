"""MLET for any torch model: put W1 W2 in the place of its embedding tables, and plain tables back after training.

Legend: n rows, K inner dimension, D embedding dimension, E the old table [n, D].
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from mlet.embedding import MultiLayerEmbedding, fill_uniform, initial_projection
from mlet.factorized_layers import FactorizedEmbedding, FactorizedEmbeddingBag, FactorizedTable

CHUNK_NUMBERS = 1 << 22  # of W1 in float64 at a time: 32 MB
# what acts when a layer is called; a parametrization's hooks, of state_dict, have done their work once it is collapsed
_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class _Table:
    """A table module of the model, with all the names under which it is reached."""

    names: list[str]
    module: nn.Module

    def __str__(self) -> str:
        return self.names[0] or "the model itself"

    @property
    def plain(self) -> bool:
        return type(self.module) in (nn.Embedding, nn.EmbeddingBag)  # a subclass may look up in another way

    @property
    def size(self) -> str:
        return f"{self.module.num_embeddings} x {self.module.embedding_dim}"


def factorize(
    model: nn.Module,
    inner_dim: int = 64,
    min_rows: int = 1000,
    *,
    init: str = "orthogonal",
    keep: bool = True,
    names: Collection[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Replace `nn.Embedding` and `nn.EmbeddingBag` in a model by trainable products W1 W2, in place.

    Multi-layer embedding training (arXiv 2006.05623, 2309.15881) for a model that knows nothing of it. Call this
    before the optimizer is built, since the parameters change (`weight` becomes `w1` and `w2`); train as ever;
    `mlet.collapse` gives the plain model back. Everything is checked first: after an error the model is as it was.
    Until this returns, the old tables and the new ones are both in memory.

    Left as they are: tables with fewer rows than `min_rows`, frozen tables, and, with a warning, subclasses. Tied
    tables (one weight in several embeddings) stay tied. Code that holds the old module or its weight outside of the
    model's module tree keeps on using the old one.

    Args:
        model: any module; one that is an embedding itself is not changed, use what is returned.
        inner_dim: inner dimension K, above the embedding dimension D of each table.
        min_rows: tables with fewer rows n gain nothing from a second matrix.
        init: initial W2, see `mlet.embedding.initial_projection`. With "orthogonal", W2^T W2 = I, so that at first
            an SGD step of W1 moves a row of the table as a step of the table itself would.
        keep: start from the model's weights, W1 W2 = E up to its dtype's rounding: the model computes what it did.
            False starts afresh, W1 from U(-1/sqrt(n), 1/sqrt(n)), the padding row from zero.
        names: names of the modules to replace, whatever their number of rows; None is all.
        seed: of the initial W1 and W2.

    Returns:
        The model.

    Raises:
        ValueError: there is nothing to replace; a table that is at least as wide as `inner_dim`; an option whose
            effect is not that of a plain lookup (max_norm, scale_grad_by_freq, mode max); a weight shared with another
            kind of module, or hooks; values that are not finite, or too large for their dtype once they are split; an
            unknown name or init; a number that is none.

    Example:
        >>> model = nn.Sequential(nn.EmbeddingBag(5000, 16, mode="sum"), nn.Linear(16, 1))
        >>> _ = factorize(model, inner_dim=64)
        >>> model[0]
        FactorizedEmbeddingBag(5000, 16, inner_dim=64, mode=sum)
    """
    _check_numbers(inner_dim=inner_dim, min_rows=min_rows, seed=seed)
    found = _find_tables(model)
    chosen = _choose_tables(model, found, min_rows, names)
    _refuse_problems(model, chosen, inner_dim, keep)
    generator = np.random.default_rng(seed)
    matrices: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by the old weight: tied tables stay tied
    replacements: dict[int, nn.Module] = {}
    for table in chosen:
        weight = table.module.weight
        if id(weight) not in matrices:
            matrices[id(weight)] = _initial_matrices(table, inner_dim, init, keep, generator)
        replacements[id(table.module)] = _factorized(table.module, *matrices[id(weight)], keep)
    return _replace(model, replacements)


def collapse_factorized(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Return the model with plain tables W1 W2 again, with the same outputs.

    Its `state_dict` has the original class's names and shapes, and loads there. Training mode stays as it is.

    Args:
        model: has been through `factorize`, or holds `MultiLayerEmbedding` layers.
        inplace: replace the layers in the given model; otherwise it stays as it is and a deep copy is returned,
            in which W1 and W2 are never copied.

    Raises:
        ValueError: there is nothing to collapse, or a row is not finite, naming the table; the model is as it was.
    """
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, (FactorizedTable, MultiLayerEmbedding)):
            layers[id(module)] = (name, module)
    if not layers:
        raise ValueError(f"nothing to collapse: {type(model).__name__} has no factorized table")
    plain: dict[int, nn.Module] = {}
    tied: dict[tuple[int, int], tuple[Tensor, Tensor, nn.Parameter]] = {}
    for key, (name, layer) in layers.items():
        try:
            plain[key] = layer.collapse()
        except ValueError as error:
            raise ValueError(f"{name or 'the model itself'}: {error}") from None
        if any(getattr(layer, hooks) for hooks in _CALL_HOOKS):
            warnings.warn(f"{name or 'the model itself'}: its hooks do not go over to the plain table", stacklevel=3)
        w1, w2 = layer.w1, layer.w2  # kept in the dictionary too: the id of what is gone may be given again
        *_, plain[key].weight = tied.setdefault((id(w1), id(w2)), (w1, w2, plain[key].weight))
    if inplace:
        return _replace(model, plain)
    # deepcopy takes what its memo has for a layer instead of copying it
    return copy.deepcopy(model, dict(plain))


def _check_numbers(**numbers: object) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{name}={value!r}: give a whole number that is not negative")


def _refuse_problems(model: nn.Module, chosen: list[_Table], inner_dim: int, keep: bool) -> None:
    problems = [f"{table}: {problem}" for table in chosen for problem in _problems(table.module, inner_dim, keep)]
    problems += _sharing_problems(model, chosen)
    if problems:
        raise ValueError(f"cannot factorize {'; '.join(problems)}. Leave a table out by giving the others as names")


def _find_tables(model: nn.Module) -> list[_Table]:
    found: dict[int, _Table] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag, FactorizedTable)):
            found.setdefault(id(module), _Table([], module)).names.append(name)
    return list(found.values())


def _choose_tables(model: nn.Module, found: list[_Table], min_rows: int, names: Collection[str] | None) -> list[_Table]:
    """Tables to replace: the named ones, else those that are large, plain and trained. ValueError if there is none."""
    if names is not None:
        return _named_tables(model, found, names)
    large = [table for table in found if table.module.num_embeddings >= min_rows]
    strange = [
        f"{table} ({type(table.module).__name__})"
        for table in large
        if not table.plain and not isinstance(table.module, FactorizedTable)
    ]
    chosen = [table for table in large if table.plain and _trained(table.module)]
    if not chosen:
        seen = [f"{table} ({type(table.module).__name__}, {table.size})" for table in found]
        raise ValueError(
            f"nothing to factorize: {type(model).__name__} has no trained nn.Embedding or nn.EmbeddingBag with "
            f"min_rows={min_rows} or more; it has {', '.join(seen) or 'no tables at all'}"
        )
    if strange:
        warnings.warn(f"factorize leaves subclasses as they are: {', '.join(strange)}", stacklevel=3)
    return chosen


def _named_tables(model: nn.Module, found: list[_Table], names: Collection[str]) -> list[_Table]:
    if isinstance(names, str):
        raise ValueError(f"names={names!r}: give a list of names")
    names = list(names)
    by_name = {name: table for table in found for name in table.names}
    for name in names:
        table = by_name.get(name)
        if table is None:
            raise ValueError(f"names: {type(model).__name__} has no table {name!r}; it has {', '.join(by_name)}")
        if not table.plain:
            raise ValueError(
                f"names: {name} is of class {type(table.module).__name__}, only torch's own class is replaced"
            )
        if not _trained(table.module):
            raise ValueError(f"names: {name} is frozen (weight.requires_grad is False)")
    if not names:
        raise ValueError("nothing to factorize: names is empty")
    return [table for table in found if not set(names).isdisjoint(table.names)]


def _trained(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is None or weight.requires_grad


def _problems(module: nn.Module, inner_dim: int, keep: bool) -> Iterator[str]:
    """Why this module cannot be replaced by one that behaves the same."""
    if module.max_norm is not None:
        yield f"max_norm={module.max_norm} (rows of W1 W2 cannot be renormalised at lookup)"
    if module.scale_grad_by_freq:
        yield "scale_grad_by_freq=True (W2's gradient would not be scaled)"
    if getattr(module, "mode", "sum") not in ("sum", "mean"):
        yield f"mode={module.mode!r} (does not commute with W2)"
    weight = module._parameters.get("weight")
    hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
    if any(hooks) or getattr(weight, "_backward_hooks", None) or getattr(weight, "_post_accumulate_grad_hooks", None):
        yield "has hooks, which would be lost"
    extra = {*module._parameters, *module._buffers, *module._modules} - {"weight"}
    if extra or "forward" in vars(module):
        yield f"has more than a weight: {', '.join(sorted(extra)) or 'a forward of its own'}"
    if type(weight) is not nn.Parameter or not weight.dtype.is_floating_point or weight.dim() != 2:
        yield f"weight is a {type(weight).__name__}, not a matrix of floats"
        return
    if weight.shape[1] >= inner_dim:
        yield f"embedding_dim={weight.shape[1]} is not below inner_dim={inner_dim}"
    if keep and weight.is_meta:
        yield "is on the meta device, without values to keep (keep=False starts afresh)"
    elif keep and not math.isfinite(_root_mean_square(weight)):
        yield "weight has values that are not finite"


def _sharing_problems(model: nn.Module, chosen: list[_Table]) -> Iterator[str]:
    """Weights whose memory is also used elsewhere: only whole weights, by tables with the same padding, stay tied."""
    by_module = {id(table.module): table for table in chosen}
    users: dict[object, list[tuple[str, nn.Module, Tensor]]] = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                users.setdefault(_memory(tensor), []).append((f"{prefix}.{name}".lstrip("."), module, tensor))
    for table in chosen:
        weight = table.module._parameters.get("weight")
        if weight is None:
            continue
        for name, module, tensor in users[_memory(weight)]:
            if id(module) not in by_module or tensor is not weight:
                yield f"{table}: its weight is shared with {name} ({type(module).__name__})"
            elif module.padding_idx != table.module.padding_idx:
                yield f"{table}: padding_idx={table.module.padding_idx}, but {module.padding_idx} in {name}, tied to it"


def _memory(tensor: Tensor) -> object:
    """Equal for tensors that share memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _chunks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, CHUNK_NUMBERS // width)
    return (slice(start, start + step) for start in range(0, rows, step))


@torch.no_grad()
def _root_mean_square(weight: Tensor) -> float:
    """Of all entries, in float64; not finite where an entry is not."""
    squares = sum(weight[rows].cpu().double().square().sum().item() for rows in _chunks(*weight.shape))
    return math.sqrt(squares / max(1, weight.numel()))


@torch.no_grad()
def _initial_matrices(
    table: _Table, inner_dim: int, init: str, keep: bool, generator: np.random.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    """W1 [n, K] and W2 [K, D] as parameters with the dtype and device of the old table."""
    weight = table.module.weight
    rows, dim = weight.shape
    w2 = torch.from_numpy(initial_projection(inner_dim, dim, init, generator)).to(weight)
    w1 = weight.new_empty(rows, inner_dim)
    bound = math.sqrt(1 / max(1, rows))
    if not keep:
        fill_uniform(w1, bound, generator)
        return nn.Parameter(w1), nn.Parameter(w2)
    # W1 is a random start Z moved to the nearest point where W1 W2 = E. Without Z it would lie in the D-dimensional
    # column space of W2, and so would its gradients (g W2^T): the inner width would never be used. A row of Z is as
    # large as that of E, since rounding errors are as large as Z; for a row of zeros as E's rows are on the whole, and
    # for a table of zeros as a fresh W1. In float64 and on the CPU, because not all devices have it.
    usual = _root_mean_square(weight) or bound / math.sqrt(3)
    exact_w2 = w2.cpu().double()
    inverse = torch.linalg.pinv(exact_w2)  # [D, K]
    for part in _chunks(rows, inner_dim):
        old = weight[part].cpu().double()
        spread = old.square().mean(dim=1, keepdim=True).sqrt()
        start = torch.from_numpy(generator.standard_normal((len(old), inner_dim)))
        start *= torch.where(spread > 0, spread, usual)
        w1[part] = (start + (old - start @ exact_w2) @ inverse).to(w1)
        if not w1[part].isfinite().all():
            most = old.abs().max().item()
            raise ValueError(
                f"cannot factorize {table}: values up to {most:g} give a W1 that {w1.dtype} cannot hold: keep=False "
                "starts afresh"
            )
    return nn.Parameter(w1), nn.Parameter(w2)


def _factorized(module: nn.Module, w1: nn.Parameter, w2: nn.Parameter, keep: bool) -> nn.Module:
    """The layer with W1 and W2 that does what the module does."""
    padding = module.padding_idx
    padding_row = module.weight[padding] if keep and padding is not None else None
    if isinstance(module, nn.Embedding):
        layer = FactorizedEmbedding(w1, w2, padding, module.sparse, padding_row)
    else:
        layer = FactorizedEmbeddingBag(
            w1, w2, module.mode, module.sparse, module.include_last_offset, padding, padding_row
        )
    return layer.train(module.training)


def _replace(model: nn.Module, replacements: dict[int, nn.Module]) -> nn.Module:
    """Put each replacement in its module's place, under all its names. By id: modules may define equality."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)]
    return replacements.get(id(model), model)
