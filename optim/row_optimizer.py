"""What the optimizers here have in common: the walk over parameters, bfloat16 noise, and an exact reload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch

from optim.row_decay import LAST_STEP, RowDecay
from optim.row_rate import RowRate
from optim.rows import (
    check_row_gradient,
    mark_if_summed,
    read_rows,
    rounding_noise,
    summed_rows,
    waits_if_coalesced,
    wide_dtype,
    write_rows,
)

Parameters = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Base of rules that take dense gradients and sparse ones of shape [N, D], in one model.

    A rule gives `_update_rows` for one parameter with a sparse gradient, `_update_dense` for all dense ones of a
    group at once, and `_layout`, the tensors of its state. State is kept in `self.state[p]`, made at p's first
    gradient: tensors in float32 (or p's dtype where that is wider), Python numbers otherwise, so that
    `torch.save` and JSON both hold it.

    A bfloat16 parameter with sparse gradients is rounded stochastically. Its noise follows from `rounding_seed`,
    its position among the parameters and the number of its updates; the last two are part of its state.

    Rows can be given a rate and a decay of their own (`set_row_rate`, `set_row_decay`). What is done to a touched row
    theta_i of summed gradient g_i in a step, in this order, the first two by functions that are called before `step`:

        g_i     <- g_i + l2 theta_i                                optim.penalty.add_row_penalty (coupled penalty)
        g_i     <- g_i min(1, c_i / ||g_i||)                       optim.row_clip.clip_row_gradients (CowClip)
        d_i     =  what the rule adds to the row for g_i           its state takes g_i as if nothing else were there
        theta_i <- (1 - idle_i) (1 - lr r_i X) theta_i + r_i d_i   r_i: optim.row_rate; idle_i, X: optim.row_decay

    d_i is that of the row as it was before the step. The weight decay X follows the row's rate lr r_i, as in AdamW; the
    idle decay does not. `decay_idle_rows` takes it before the forward pass instead: theta_i <- (1 - idle_i) theta_i,
    then all of the above with idle_i = 0.

    Args:
        params: parameters or parameter groups.
        defaults: options of the groups; `lr`, `eps` and `rounding_seed` are checked.

    Raises:
        ValueError: lr or eps is negative, or rounding_seed is not an integer of at least 0.
    """

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        for name in ("lr", "eps"):
            if name in defaults and not defaults[name] >= 0:
                raise ValueError(f"{name} is {defaults[name]}, must be at least 0")
        seed = defaults["rounding_seed"]
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"rounding_seed is {seed!r}, must be an integer of at least 0")
        super().__init__(params, defaults)
        self._row_rates: dict[torch.Tensor, RowRate] = {}
        self._row_decays: dict[torch.Tensor, RowDecay] = {}

    def set_row_rate(self, p: torch.Tensor, rate: RowRate) -> None:
        """Multiply what each step adds to row i of `p` with `rate(i)`; p's gradients must be sparse.

        Works for every rule, as its state is that of the rule alone. The rate is not part of `state_dict`.

        Raises:
            ValueError: p is bfloat16, whose rounding would be done twice.
        """
        _refuse_bfloat16(p, "a rate by row")
        self._row_rates[p] = rate

    def set_row_decay(self, p: torch.Tensor, decay: RowDecay) -> None:
        """Let the rows of `p` that a step touches lose what `decay` says; p's gradients must be sparse.

        Works for every rule. Idle decay keeps one int32 a row in p's state, which is part of `state_dict`.

        Raises:
            ValueError: p is bfloat16, whose rounding would be done twice.
        """
        _refuse_bfloat16(p, "decay of rows")
        self._row_decays[p] = decay

    @torch.no_grad()
    def decay_idle_rows(self, p: torch.Tensor, rows: torch.Tensor) -> None:
        """Before the forward pass: take the idle decay that `set_row_decay` asks for from rows [L] that it will read.

        Without this call the step that updates a row takes it, from gradients that have seen the row undecayed.
        """
        if p in self._row_decays:
            self._row_decays[p].at_lookup(p, rows, self.state[p])

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Update every parameter that has a gradient. Returns the closure's loss, if there is a closure.

        Raises:
            ValueError: a sparse gradient is not [N, D] with sparse rows, or, where the rule has state, a parameter
                has both sparse and dense gradients in turn.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense, grads = [], []
            for p in group["params"]:
                grad = p.grad
                if grad is None:
                    continue
                if grad.is_sparse:
                    check_row_gradient(grad)
                    mark_if_summed(grad)
                    scaled = p in self._row_rates or p in self._row_decays
                    update = self._update_scaled if scaled else self._update_rows
                    update(p, grad, group)
                else:
                    dense.append(p)
                    grads.append(grad)
            if dense:
                self._update_dense(dense, grads, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state bit for bit, as a copy.

        The base class would cast tensors to the parameter's dtype and share them with `state_dict`.

        Raises:
            ValueError: a tensor of the state is missing or does not fit its parameter; nothing is loaded then.
        """
        saved = (index for group in state_dict["param_groups"] for index in group["params"])
        own = (p for group in self.param_groups for p in group["params"])
        tensors = []
        for index, p in zip(saved, own, strict=False):  # the base class refuses unequal groups
            state = state_dict["state"].get(index)
            if state is None:
                continue
            layout = self._layout(p, state)
            if LAST_STEP in state:
                layout = layout | {LAST_STEP: ("last step of each row", (p.shape[:1],))}
            for name, (label, shapes) in layout.items():
                if name not in state:
                    raise ValueError(f"parameter {index}: its state has no {label}, {name!r}")
                if state[name].shape not in shapes:
                    raise ValueError(
                        f"parameter {index}: its {label} has shape {list(state[name].shape)}, which does not fit "
                        f"the parameter's, {list(p.shape)}"
                    )
                tensors.append((p, name, state[name]))
        super().load_state_dict(state_dict)
        for p, name, loaded in tensors:
            self.state[p][name] = loaded.detach().to(p.device, copy=True)

    def _update_scaled(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        """The rule's update, of which each row takes its share, less what the row loses; see the class."""
        if not waits_if_coalesced(grad):
            grad = grad.coalesce()  # once, not here and in the rule
        rows, _ = summed_rows(grad, grad.dtype)
        before = read_rows(p, rows)
        self._update_rows(p, grad, group)
        after, share = read_rows(p, rows), 1.0
        if p in self._row_rates:
            share = self._row_rates[p](rows)
            after = torch.lerp(before, after, share.unsqueeze(1).to(before.dtype))
        if p in self._row_decays:
            lost = self._row_decays[p].lost(rows, len(p), self.state[p], group["lr"] * share)
            after.addcmul_(before, lost.unsqueeze(1).to(before.dtype), value=-1)
        write_rows(p, rows, after)

    @abstractmethod
    def _update_rows(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        """Update the rows of `p` [N, D] that the sparse `grad` touches; its rows may repeat."""

    @abstractmethod
    def _update_dense(self, params: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update parameters whose gradients are dense."""

    @abstractmethod
    def _layout(self, p: torch.Tensor, state: dict[str, Any]) -> dict[str, tuple[str, tuple[torch.Size, ...]]]:
        """{key: (what to call it, shapes it may have)} of the tensors in a state of `p`."""

    def _state_of(self, p: torch.Tensor, sparse: bool) -> dict[str, Any]:
        """p's state. Raises ValueError if p's gradients were not `sparse` before and are now, or the reverse."""
        state = self.state[p]
        if state.setdefault("sparse", sparse) != sparse:
            kinds = ("dense", "sparse")
            raise ValueError(
                f"a parameter of shape {list(p.shape)} had {kinds[not sparse]} gradients and now has a "
                f"{kinds[sparse]} one: its gradients must stay sparse or stay dense"
            )
        return state

    def _noise(self, p: torch.Tensor, shape: torch.Size, group: dict[str, Any]) -> torch.Tensor | None:
        """Noise for the next `write_rows` to p: of `shape` if p is bfloat16, None if p needs no rounding."""
        if p.dtype != torch.bfloat16:
            return None
        state = self.state[p]
        if "rounding_stream" not in state:  # kept, since a resumed run may list its parameters in another order
            order = [id(q) for each in self.param_groups for q in each["params"]]
            state["rounding_stream"] = order.index(id(p))
        state["rounding_step"] = state.get("rounding_step", 0) + 1
        seed = (group["rounding_seed"], state["rounding_stream"], state["rounding_step"])
        return rounding_noise(shape, p.device, seed)


def _refuse_bfloat16(p: torch.Tensor, what: str) -> None:
    if p.dtype == torch.bfloat16:
        raise ValueError(f"{what} works on parameters in float32: bfloat16 rows would be rounded twice")


def state_zeros(state: dict[str, Any], name: str, shape: torch.Size, p: torch.Tensor) -> torch.Tensor:
    """state[name]; made on p's device, as zeros of `shape` in `wide_dtype(p)`, if it is not there."""
    if name not in state:
        state[name] = torch.zeros(shape, dtype=wide_dtype(p), device=p.device)
    return state[name]


def widened(grads: list[torch.Tensor], like: list[torch.Tensor]) -> list[torch.Tensor]:
    """Dense gradients in the dtypes of `like`: themselves, where they have it already."""
    return [
        grad if grad.dtype == other.dtype else grad.to(other.dtype) for grad, other in zip(grads, like, strict=True)
    ]
