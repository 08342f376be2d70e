"""Learning rate over the steps of a training run: linear warm-up, hold, quadratic decay, hold.

The values are those of the reference driver's `--lr-num-warmup-steps`, `--lr-decay-start-step` and
`--lr-num-decay-steps`. With W warm-up steps and a decay of L steps from step S, step t (the first is 1) has
the rate

    t < W            base * t / W
    W <= t < S       base * (W - 1) / W, the last warm-up rate (base if there is no warm-up or no decay)
    S <= t < S + L   max(base * ((S + L - t) / L)^2, 1e-7)
    S + L <= t       the last decayed rate
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LEAST_DECAYED_RATE = 1e-7


def learning_rate_scale(step: int, base_lr: float, warmup_steps: int, decay_start_step: int, decay_steps: int) -> float:
    """What the base rate is multiplied with at `step`: above 0, at most 1.

    Args:
        step: optimizer step; the first is 1.
        base_lr: base rate; it matters where the decay reaches 1e-7. A base rate below that does not decay.
        warmup_steps: W; 0 or 1 means no warm-up.
        decay_start_step: S, the first step of the decay, not before W.
        decay_steps: L; 0 means no decay, and S does not matter then.

    Raises:
        ValueError: a negative value, a step below 1, or a decay that starts before the warm-up ends.
    """
    _check(step, base_lr, warmup_steps, decay_start_step, decay_steps)
    if step < warmup_steps:
        return 1.0 - (warmup_steps - step) / warmup_steps
    if decay_steps == 0:
        return 1.0
    if step < decay_start_step:
        return 1.0 - 1 / warmup_steps if warmup_steps > 1 else 1.0
    left = max(decay_start_step + decay_steps - step, 1)
    scale = (left / decay_steps) ** 2
    if base_lr * scale >= LEAST_DECAYED_RATE:
        return scale
    return LEAST_DECAYED_RATE / base_lr if base_lr > LEAST_DECAYED_RATE else 1.0


def warmup_decay(
    optimizer: torch.optim.Optimizer, warmup_steps: int = 0, decay_start_step: int = 0, decay_steps: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Schedule every parameter group from its own base rate. Call the result's `step` after the optimizer's.

    The optimizer has the rate of step 1 when this returns.

    Raises:
        ValueError: as in `learning_rate_scale`.
    """

    def scale_of(base_lr: float) -> Callable[[int], float]:
        return lambda done: learning_rate_scale(done + 1, base_lr, warmup_steps, decay_start_step, decay_steps)

    # a group that was scheduled before carries its base rate as initial_lr, and LambdaLR starts from that
    base_rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [scale_of(base) for base in base_rates])


def scale_rates(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, factor: float) -> None:
    """Multiply the rate of every group, now and in the rest of the schedule."""
    schedule.base_lrs = [base * factor for base in schedule.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] *= factor
        group["initial_lr"] *= factor


def _check(step: int, base_lr: float, warmup_steps: int, decay_start_step: int, decay_steps: int) -> None:
    least = {
        "step": (step, 1),
        "base_lr": (base_lr, 0),
        "warmup_steps": (warmup_steps, 0),
        "decay_start_step": (decay_start_step, 0),
        "decay_steps": (decay_steps, 0),
    }
    for name, (value, limit) in least.items():
        if not value >= limit:
            raise ValueError(f"{name} is {value}, must be at least {limit}")
    if decay_steps > 0 and decay_start_step < warmup_steps:
        raise ValueError(
            f"decay_start_step is {decay_start_step}, must not be below warmup_steps, {warmup_steps}: "
            "the warm-up ends before the decay starts"
        )
