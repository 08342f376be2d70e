"""What rows lose in a step: weight decay, idle decay, and all that is done to rows together, against dense twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rules import RULES, D, N, gradient, run, table

from mlet import checkpoint
from optim.penalty import add_row_penalty
from optim.row_clip import clip_row_gradients
from optim.row_decay import RowDecay, idle_steps
from optim.row_rate import RowRate

STEPS = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=8), min_size=1, max_size=6)
COUNTS = torch.arange(N, dtype=torch.float32)
LR, L2, CLIP, FLOOR, X, ALPHA = 0.5, 0.25, 0.5, 0.5, 0.125, 0.25


class Twin:
    """A rule and everything around it as the docstrings have it, on whole arrays in float64, rows one by one."""

    def __init__(self, rule, w, rate, clip, decay, idle):
        self.rule, self.rate, self.clip, self.decay, self.idle = rule, rate, clip, decay, idle
        self.w = w.detach().double().numpy().copy()
        self.a, self.m, self.v = (np.zeros_like(self.w) for _ in range(3))
        self.updates, self.last, self.now = np.zeros(N), [None] * N, 0

    def step(self, grad, lookups):
        self.now += 1
        dense = grad.to_dense().double().numpy()
        for i in sorted(set(lookups)):
            w, g = self.w[i].copy(), dense[i]
            if self.clip:
                g = g + L2 * w
                limit = lookups.count(i) * max(np.linalg.norm(w), CLIP * np.sqrt(D) * FLOOR) * CLIP
                g = g * min(1.0, limit / max(np.linalg.norm(g), 1e-30))
            rate = np.sqrt(i / (N - 1)) if self.rate else 1.0
            gone_by = 0 if self.last[i] is None else self.now - 1 - self.last[i]
            self.last[i] = self.now
            left = (1 - min(1.0, ALPHA * gone_by) * self.idle) * (1 - LR * rate * X * self.decay)
            self.w[i] = left * w + rate * self.change(i, g)

    def change(self, i, g):
        self.updates[i] += 1
        self.a[i] += (g * g).mean() if self.rule == "rwsadagrad" else g * g
        self.m[i], self.v[i] = 0.9 * self.m[i] + 0.1 * g, 0.999 * self.v[i] + 0.001 * g * g
        if self.rule == "sgd":
            return -LR * g
        if "adagrad" in self.rule:
            return -LR * g / (np.sqrt(self.a[i]) + 1e-10)
        t = self.updates[i] if self.rule == "adam-row-steps" else self.now
        return -LR * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * self.m[i] / (np.sqrt(self.v[i]) + 1e-8)


def composed(rule, p, rate, decay, idle):
    optimizer = RULES[rule]([p], lr=LR)
    if rate:
        optimizer.set_row_rate(p, RowRate("sqrt", [0], N, counts=COUNTS.to(p.device), online=False))
    if decay or idle:
        optimizer.set_row_decay(p, RowDecay(X * decay, ALPHA * idle))
    return optimizer


def step(p, optimizer, grad, rows, clip):
    p.grad = grad
    if clip:
        add_row_penalty([p], L2)
        clip_row_gradients(p, torch.tensor(rows, device=p.device), CLIP, FLOOR)
    optimizer.step()


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=30)
@given(steps=STEPS, rate=st.booleans(), clip=st.booleans(), decay=st.booleans(), idle=st.booleans())
def test_a_composed_step_equals_a_dense_twin(rule, steps, rate, clip, decay, idle):
    """Penalty, clip, rule, rate and both decays in the order that `RowOptimizer` says, with repeated rows."""
    p = table()
    twin = Twin(rule, p, rate, clip, decay, idle)
    optimizer = composed(rule, p, rate, decay, idle)
    for seed, rows in enumerate(steps):
        grad = gradient(rows, seed) + gradient(rows, seed + 100) * 0.01  # in two parts: a row repeats, uncoalesced
        twin.step(grad, rows)
        step(p, optimizer, grad, rows, clip)
    # adam divides a gradient by its own size: where one cancels to nothing, rounding decides
    assert np.allclose(p.detach().numpy(), twin.w, rtol=1e-4, atol=1e-4)


def zeros(rows):
    """A gradient that touches rows and moves none of them."""
    return gradient(rows, 0) * 0


def test_what_a_row_loses_by_idling():
    """Row 0 in every step, row 1 in the first and the fifth: 3 steps went by. Row 2 comes first in the fifth."""
    p = torch.nn.Parameter(torch.ones(N, D))
    optimizer = RULES["sgd"]([p], lr=0.0)
    optimizer.set_row_decay(p, RowDecay(idle=0.125))
    run(p, optimizer, [zeros(rows) for rows in ([0, 1], [0], [0], [0], [0, 1, 2])])
    assert p[:3, 0].tolist() == [1.0, 1 - 3 * 0.125, 1.0]
    run(p, optimizer, [zeros([0])] * 20 + [zeros([1])])
    assert p[1].tolist() == [0.0] * D  # a row cannot lose more than all


@pytest.mark.parametrize("rule", RULES)
def test_decay_before_the_lookup_is_that_of_a_shrunk_row(rule):
    """The model reads row 3 decayed, however often it asks before the update; then the rule steps as if born so."""
    p, twin = table(), table()
    optimizer, plain = composed(rule, p, rate=False, decay=False, idle=True), RULES[rule]([twin], lr=LR)
    lookup = torch.tensor([3, 5, 3])
    optimizer.decay_idle_rows(p, lookup)  # nothing has idled yet
    for seed, rows in enumerate([[3, 3], [1], [1]]):
        run(p, optimizer, [gradient(rows, seed)])
        run(twin, plain, [gradient(rows, seed)])
    assert torch.equal(p[5], table()[5])
    twin.data[3] *= 1 - 2 * ALPHA
    optimizer.decay_idle_rows(p, lookup)
    optimizer.decay_idle_rows(p, lookup)
    torch.testing.assert_close(p, twin)
    assert torch.equal(p[5], table()[5])  # never updated: nothing to lose
    run(p, optimizer, [gradient([3, 3, 5], 7)])
    torch.testing.assert_close(p, run(twin, plain, [gradient([3, 3, 5], 7)]))


def test_weight_decay_follows_the_rate_of_the_step_and_of_the_row():
    p = torch.nn.Parameter(torch.ones(N, D))
    optimizer = composed("sgd", p, rate=True, decay=True, idle=False)
    optimizer.param_groups[0]["lr"] = 0.25
    run(p, optimizer, [zeros([2, 8])])
    assert p[:, 0].tolist() == pytest.approx([1, 1, 1 - 0.25 * 0.5 * X, 1, 1, 1, 1, 1, 1 - 0.25 * X])


def test_a_small_share_is_not_rounded_away():
    """1 - (1 - a)(1 - b) in float32 would lose three digits of these."""
    state = {}
    idle_steps(torch.tensor([0]), 2, state)
    idle_steps(torch.tensor([1]), 2, state)
    lost = RowDecay(weight=1e-7, idle=3e-7).lost(torch.tensor([0]), 2, state, 1.0)
    assert float(lost) == pytest.approx(4e-7, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_reloaded_state_goes_on_exactly(rule, tmp_path):
    steps = [[0, 1, 1], [2], [3, 2, 0], [1], [0, 4], [1, 3]]
    whole, part, after = table(), table(), table()
    optimizers = [composed(rule, p, rate=True, decay=True, idle=True) for p in (whole, part, after)]
    for seed, rows in enumerate(steps):
        step(whole, optimizers[0], gradient(rows, seed), rows, True)
    for seed, rows in enumerate(steps[:3]):
        step(part, optimizers[1], gradient(rows, seed), rows, True)
    packed = checkpoint.pack_optimizer(optimizers[1], {part: "p"})
    checkpoint.save_checkpoint(tmp_path / "saved", {"p": part.detach()}, {"optimizer": packed})
    tensors, state = checkpoint.load_checkpoint(tmp_path / "saved")
    after.data.copy_(tensors["p"])
    checkpoint.unpack_optimizer(optimizers[2], state["optimizer"], {after: "p"})
    for seed, rows in list(enumerate(steps))[3:]:
        step(after, optimizers[2], gradient(rows, seed), rows, True)
    assert torch.equal(whole, after)
    assert optimizers[2].state[after]["last_step"].dtype == torch.int32


def test_a_last_step_that_does_not_fit_is_refused():
    p = table()
    optimizer = composed("sgd", p, rate=False, decay=False, idle=True)
    run(p, optimizer, [gradient([1], 0)])
    state = optimizer.state_dict()
    state["state"][0] = state["state"][0] | {"last_step": torch.zeros(N + 1)}
    with pytest.raises(ValueError, match=r"its last step of each row has shape \[10\]"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_on_is_the_plain_rule_to_the_bit(rule):
    gradients = [gradient([1, 1, 3], seed).coalesce() for seed in range(4)]
    plain, off = table(), table()
    optimizer = RULES[rule]([off], lr=0.1)
    optimizer.set_row_decay(off, RowDecay())
    assert torch.equal(run(plain, RULES[rule]([plain], lr=0.1), gradients), run(off, optimizer, gradients))


@pytest.mark.parametrize(("name", "value"), [("weight", -0.1), ("idle", float("nan")), ("idle", float("inf"))])
def test_bad_decays_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} decay of rows is {value}"):
        RowDecay(**{name: value})
    p = table(torch.bfloat16)
    with pytest.raises(ValueError, match="decay of rows works on parameters in float32"):
        RULES["sgd"]([p], lr=0.1).set_row_decay(p, RowDecay(weight=0.1))


@pytest.mark.parametrize("rule", RULES)
def test_cuda_agrees_with_the_cpu_and_does_not_synchronise(rule):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    steps, weights = [[3, 3, 1], [0, 8], [3, 0], [1, 8, 8]], []
    for device in ("cpu", "cuda"):
        p = table(device=device)
        optimizer = composed(rule, p, rate=True, decay=True, idle=True)
        rows = [torch.tensor(each, device=device) for each in steps]
        grads = [gradient(each, seed).coalesce().to(device) for seed, each in enumerate(steps)]
        try:
            for at, (lookups, p.grad) in enumerate(zip(rows, grads, strict=True)):
                if device == "cuda" and at > 0:  # the first step makes the state and loads kernels
                    torch.cuda.set_sync_debug_mode("error")
                if at % 2:
                    optimizer.decay_idle_rows(p, lookups)
                add_row_penalty([p], L2)
                clip_row_gradients(p, lookups, CLIP, FLOOR)
                optimizer.step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        weights.append(p.detach().cpu())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
