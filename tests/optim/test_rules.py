"""What holds for every rule: equal to dense NumPy twins and to torch, exact elsewhere, and across a save."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from mlet import checkpoint

N, D = 9, 4
RULES = {
    "sgd": optim.SGD,
    "adagrad": optim.Adagrad,
    "rwsadagrad": optim.RowWiseAdagrad,
    "adam": optim.Adam,
    "adam-row-steps": functools.partial(optim.Adam, row_steps=True),
}
TORCH_SPARSE = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
TORCH_DENSE = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rwsadagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adam-row-steps": torch.optim.Adam,
}
STATEFUL = [name for name in RULES if name != "sgd"]
every_rule = pytest.mark.parametrize("rule", RULES)
STEPS = st.lists(st.lists(st.integers(0, N - 1), max_size=20), min_size=1, max_size=5)  # touched rows, may repeat


def table(dtype=torch.float32, device="cpu"):
    return torch.nn.Parameter(torch.linspace(-1, 1, N * D).reshape(N, D).to(device, dtype))


def gradient(rows, seed, dtype=torch.float32):
    """[N, D] sparse; its values are eighths, so that their sums are exact in any order."""
    values = torch.from_numpy(np.random.default_rng(seed).integers(-16, 17, (len(rows), D)) / 8).to(dtype)
    return torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.int64), values, (N, D), check_invariants=True)


def run(p, optimizer, gradients):
    for each in gradients:
        p.grad = each
        optimizer.step()
    return p.detach().clone()


def twin(rule, w, gradients, lr):
    """The rules of the docstrings on whole arrays in float64."""
    w = w.detach().double().numpy().copy()
    a, m, v, updates = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), np.zeros((N, 1))
    for step, each in enumerate(gradients, 1):
        g, hit = each.to_dense().double().numpy(), np.zeros((N, 1), bool)
        hit[each._indices()[0].numpy()] = True
        updates += hit
        a += (g * g).mean(axis=1, keepdims=True) if rule == "rwsadagrad" else g * g
        m, v = np.where(hit, 0.9 * m + 0.1 * g, m), np.where(hit, 0.999 * v + 0.001 * g * g, v)
        t = np.maximum(updates, 1) if rule == "adam-row-steps" else step
        adam = np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
        change = {"sgd": g, "adagrad": g / (np.sqrt(a) + 1e-10), "rwsadagrad": g / (np.sqrt(a) + 1e-10)}.get(rule, adam)
        w -= np.where(hit, lr * change, 0.0)
    return torch.from_numpy(w).float()


@every_rule
@settings(deadline=None, max_examples=30)
@given(steps=STEPS, lr=st.sampled_from([0.0, 0.01, 1.0]))
def test_equals_dense_twin_and_leaves_other_rows_alone(rule, steps, lr):
    gradients = [gradient(rows, seed) for seed, rows in enumerate(steps)]
    p = table()
    before = p.detach().clone()
    after = run(p, RULES[rule]([p], lr=lr), gradients)
    torch.testing.assert_close(after, twin(rule, before, gradients, lr), rtol=1e-5, atol=1e-5)
    untouched = sorted(set(range(N)) - {row for rows in steps for row in rows})
    assert torch.equal(after[untouched], before[untouched])


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=10)
@given(steps=STEPS)
def test_uncoalesced_equals_coalesced(rule, dtype, steps):
    gradients = [gradient(rows, seed, dtype) for seed, rows in enumerate(steps)]
    left, right = table(dtype), table(dtype)
    ours = run(left, RULES[rule]([left], lr=0.25), gradients)
    coalesced = run(right, RULES[rule]([right], lr=0.25), [each.coalesce() for each in gradients])
    # one rounding more for each repeated row, where SGD adds them one after the other
    tolerance = 1e-5 if rule == "sgd" and dtype == torch.float32 else 0.0
    torch.testing.assert_close(ours, coalesced, rtol=0.0, atol=tolerance)


@every_rule
@pytest.mark.parametrize("rows", [[], [4], [4, 4, 2]])
@pytest.mark.parametrize("coalesced", [False, True])
def test_gradient_is_left_as_it_was(rule, rows, coalesced):
    p = table()
    each = gradient(rows, seed=0)
    each = each.coalesce() if coalesced else each
    before = each.clone()
    run(p, RULES[rule]([p], lr=0.1), [each])
    assert each.is_coalesced() == before.is_coalesced()
    assert torch.equal(each._values(), before._values())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own optimizers make unchecked tensors
@pytest.mark.parametrize("rule", TORCH_SPARSE)
@pytest.mark.parametrize("scale", [1.0, 1e-6])  # the small one tells where eps is added
def test_sparse_numbers_of_torch(rule, scale):
    gradients = [gradient(rows, seed) * scale for seed, rows in enumerate([[3, 3, 1], [0, 8], [3, 0], [1, 1, 1, 3]])]
    left, right = table(), table()
    ours = run(left, RULES[rule]([left], lr=0.1), gradients)
    theirs = run(right, TORCH_SPARSE[rule]([right], lr=0.1), gradients)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)
    assert rule != "sgd" or torch.equal(ours, theirs)


@every_rule
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_dense_numbers_of_torch_to_the_last_bit(rule, scale):
    def train(kind):
        torch.manual_seed(0)
        first, late = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))
        optimizer = kind([{"params": [first, late]}], lr=0.1)
        for step in range(6):
            first.grad = torch.randn(5, 3) * scale
            late.grad = torch.randn(7) * scale if step >= 2 else None
            optimizer.step()
        return first, late

    for ours, theirs in zip(train(RULES[rule]), train(TORCH_DENSE[rule]), strict=True):
        assert torch.equal(ours, theirs)


def model_and_optimizer(rule, dtype, reverse=False):
    """Two tables and a dense parameter, with names; the order within a group may be reversed."""
    parameters = {"first": table(dtype), "second": table(dtype), "dense": table(torch.float32)}
    tables = [parameters["first"], parameters["second"]]
    groups = [{"params": [parameters["dense"]]}, {"params": tables[::-1] if reverse else tables, "lr": 0.5}]
    return parameters, RULES[rule](groups, lr=0.1, rounding_seed=7)


def train(parameters, optimizer, steps):
    for step in steps:
        for place, name in enumerate(("first", "second")):
            parameters[name].grad = gradient([step % N, 3, 3], 2 * step + place, parameters[name].dtype)
        parameters["dense"].grad = gradient(range(N), step).to_dense()
        optimizer.step()


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_going_on_after_a_checkpoint_equals_going_straight_through(rule, dtype, tmp_path):
    straight, one = model_and_optimizer(rule, dtype)
    train(straight, one, range(6))

    parameters, optimizer = model_and_optimizer(rule, dtype)
    train(parameters, optimizer, range(3))
    packed = checkpoint.pack_optimizer(optimizer, {p: name for name, p in parameters.items()})
    tensors = {name: p.detach() for name, p in parameters.items()}
    checkpoint.save_checkpoint(tmp_path / "saved", tensors, {"optimizer": packed})
    tensors, state = checkpoint.load_checkpoint(tmp_path / "saved")
    resumed, other = model_and_optimizer(rule, dtype, reverse=True)
    with torch.no_grad():
        for name, p in resumed.items():
            p.copy_(tensors[name])
    checkpoint.unpack_optimizer(other, state["optimizer"], {p: name for name, p in resumed.items()})
    train(resumed, other, range(3, 6))

    for name, p in straight.items():
        assert torch.equal(p, resumed[name])
        expected, found = one.state[p], other.state[resumed[name]]
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert type(value) is type(found[key])
            if torch.is_tensor(value):
                assert value.dtype == found[key].dtype and torch.equal(value, found[key])
            else:
                assert value == found[key]


@pytest.mark.parametrize("rule", STATEFUL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_state_is_an_exact_copy(rule, dtype):
    first, second = table(dtype), table(dtype)
    source, target = RULES[rule]([first]), RULES[rule]([second])
    run(first, source, [gradient([1], 0, dtype)])
    target.load_state_dict(source.state_dict())
    kept = {key: value.clone() for key, value in source.state[first].items() if torch.is_tensor(value)}
    for key, value in kept.items():
        loaded = target.state[second][key]
        assert loaded.dtype == value.dtype and torch.equal(loaded, value)
    run(second, target, [gradient([1, 2], 1, dtype)])
    for key, value in kept.items():
        assert torch.equal(source.state[first][key], value)


@pytest.mark.parametrize(
    ("rule", "key", "message"),
    [
        ("adagrad", "sum", r"parameter 0: its accumulator has shape \[10\].*\[9, 4\]"),
        ("rwsadagrad", "sum", r"parameter 0: its accumulator has shape \[10\].*\[9, 4\]"),
        ("adam", "exp_avg", r"parameter 0: its first moment has shape \[10\].*\[9, 4\]"),
        ("adam", "exp_avg_sq", r"parameter 0: its second moment has shape \[10\].*\[9, 4\]"),
        ("adam-row-steps", "row_steps", r"parameter 0: its row counter has shape \[10\].*\[9, 4\]"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_nothing_loaded(rule, key, message):
    p = table()
    optimizer = RULES[rule]([p])
    run(p, optimizer, [gradient([1], 0)])
    state = optimizer.state_dict()
    state["state"][0] = {**state["state"][0], key: torch.zeros(N + 1)}
    kept = optimizer.state[p][key].clone()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[p][key], kept)


def test_state_of_another_rule_is_refused():
    p = table()
    momentum = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    run(p, momentum, [gradient([1], 0).to_dense()])
    for rule, label in (("adagrad", "accumulator, 'sum'"), ("adam", "first moment, 'exp_avg'")):
        with pytest.raises(ValueError, match=f"parameter 0: its state has no {label}"):
            RULES[rule]([p]).load_state_dict(momentum.state_dict())


@every_rule
def test_parameter_without_gradient_in_the_first_step_trains_later(rule):
    first, late = table(), table()
    optimizer = RULES[rule]([first, late], lr=0.1)
    run(first, optimizer, [gradient([1], 0)])
    assert late not in optimizer.state
    before = late.detach().clone()
    assert not torch.equal(run(late, optimizer, [gradient([1], 0)]), before)


@pytest.mark.parametrize("rule", [name for name in STATEFUL if name != "rwsadagrad"])
@pytest.mark.parametrize(("before", "after"), [("sparse", "dense"), ("dense", "sparse")])
def test_changing_between_sparse_and_dense_is_refused(rule, before, after):
    gradients = {"sparse": gradient([1], 0), "dense": torch.ones(N, D)}
    p = table()
    optimizer = RULES[rule]([p])
    run(p, optimizer, [gradients[before]])
    with pytest.raises(ValueError, match=rf"shape \[9, 4\] had {before} gradients and now has a {after} one"):
        run(p, optimizer, [gradients[after]])


@every_rule
def test_sparse_gradient_of_another_form_is_refused(rule):
    p = table()
    with pytest.raises(ValueError, match=r"must be \[N, D\].*2 sparse and 0 dense"):
        run(p, RULES[rule]([p]), [torch.ones(N, D).to_sparse()])


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [(rule, {"lr": -1.0}, "lr is -1.0, must be at least 0") for rule in RULES]
    + [(rule, {"eps": -1e-9}, "eps is -1e-09, must be at least 0") for rule in STATEFUL]
    + [(rule, {"rounding_seed": -1}, "rounding_seed is -1, must be an integer of at least 0") for rule in RULES]
    + [("sgd", {"rounding_seed": 0.5}, "rounding_seed is 0.5, must be an integer")]
    + [("adam", {"betas": (1.0, 0.9)}, "beta1 is 1.0, must be at least 0 and below 1")]
    + [("adam", {"betas": (0.9, -0.1)}, "beta2 is -0.1, must be at least 0 and below 1")],
)
def test_bad_options_are_refused_by_value(rule, options, message):
    with pytest.raises(ValueError, match=message):
        RULES[rule]([table()], **options)


@every_rule
def test_closure_runs_with_gradients_and_its_loss_is_returned(rule):
    p = table()
    optimizer = RULES[rule]([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.embedding(torch.tensor([2, 2]), p, sparse=True).square().sum()
        loss.backward()
        return loss

    before = p.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert (p != before).any(dim=1).nonzero().flatten().tolist() == [2]


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_cpu_and_does_not_synchronise(rule, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gradients = [gradient(rows, seed, dtype).coalesce() for seed, rows in enumerate([[3, 3, 1], [0, 8], [3, 0]])]
    weights = []
    for device in ("cpu", "cuda"):
        sparse, dense = table(dtype, device), table(torch.float32, device)
        optimizer = RULES[rule]([sparse, dense], lr=0.1)
        moved = [(each.to(device), each.to_dense().float().to(device)) for each in gradients]
        try:
            for step, (sparse.grad, dense.grad) in enumerate(moved):
                if device == "cuda" and step > 0:  # the first step makes the state and loads kernels
                    torch.cuda.set_sync_debug_mode("error")
                optimizer.step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        weights.append((sparse.detach().float().cpu(), dense.detach().cpu()))
    # CPU and CUDA have different noise: each of three steps may differ by a unit in the last place of bfloat16
    tolerance = {"rtol": 0.0, "atol": 3 * 2**-7} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(weights[1][0], weights[0][0], **tolerance)
    torch.testing.assert_close(weights[1][1], weights[0][1], rtol=1e-5, atol=1e-6)
