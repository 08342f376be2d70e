"""Each model equals its paper's equations, written out with loops over samples, fields, pairs and layers in float64.

Legend: v vectors of a sample, F of them, D wide; w weights by their names in the model; first the first-order term.
"""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from mlet.models import build_model, model_names, model_options
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

ROWS = {"a": 10, "b": 20, "c": 5}
WIDTH, DENSE = 4, 6
OPTIONS = {
    "xdeepfm": {"cin_widths": (5, 3)},
    "dcn": {"cross_layers": 2},
    "dcn-v2": {"cross_layers": 2},
    "autoint": {"attention_layers": 2, "attention_heads": 3, "head_width": 5},
}


def make(name, dense=True, k=0, mode="sum", rows=ROWS, **arguments):
    tables = EmbeddingTables(plan_tables(rows, WIDTH, inner_dim=k), unknown=True, mode=mode)
    bottom = (DENSE, 9, WIDTH) if dense else ()
    return build_model(name, tables, **({"bottom": bottom, "top": (8, 5, 1)} | OPTIONS.get(name, {}) | arguments))


def randomize(model, std=0.4):
    """Every weight, bias and running statistic, those that start at zero or one too."""
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=generator)
        elif value.is_floating_point():
            value.normal_(std=std, generator=generator)
    return model


# ------------------------------------------------------------------------------------------------- the parts


def weights_of(model):
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def rows_of(tables):
    """One array [n, D] a table: W1, or W1 W2."""
    out = []
    for part in tables.parts():
        rows = part.group.part(part.index, part.counted_rows).double().numpy()
        if part.group.inner_projection is not None:
            rows = rows @ part.group.inner_projection[part.index].detach().double().numpy()
        out.append(rows)
    return out


def batch_norm(w, name, x):
    """Ioffe and Szegedy 2015, algorithm 2: the running statistics stand for the batch's."""
    scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
    return scale * (x - w[f"{name}.running_mean"]) + w[f"{name}.bias"]


def mlp(w, name, x, ends_linear=True):
    """ReLU(BN(W x + b)) again and again; the last layer W x + b alone if `ends_linear`."""
    places = sorted({int(key.split(".")[1]) for key in w if key.startswith(f"{name}.")})
    linear = [i for i in places if w[f"{name}.{i}.weight"].ndim == 2]
    for i in linear:
        x = w[f"{name}.{i}.weight"] @ x + w[f"{name}.{i}.bias"]
        if ends_linear and i == linear[-1]:
            return x
        if f"{name}.{i + 1}.running_mean" in w:
            x = batch_norm(w, f"{name}.{i + 1}", x)
        x = np.maximum(x, 0)
    return x


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


# ------------------------------------------------------------------------------- the logits behind the vectors


def wide_deep(w, v, first):
    """arXiv 1606.07792, equation 3."""
    return first + mlp(w, "deep", np.concatenate(v))


def deepfm(w, v, first):
    """arXiv 1703.04247, equations 1, 2 and 4."""
    return first + sum(v_i @ v_j for v_i, v_j in combinations(v, 2)) + mlp(w, "deep", np.concatenate(v))


def xdeepfm(w, v, first):
    """arXiv 1803.05170, equations 6 (identity as activation), 7, 8 (all layers' sums) and 9."""
    maps, pooled, k = v, [], 0
    while f"cin.layers.{k}.weight" in w:
        weight = w[f"cin.layers.{k}.weight"].reshape(-1, len(maps), len(v))  # [h, i, j]
        maps = [sum(a * maps[i] * v[j] for (i, j), a in np.ndenumerate(of_map)) for of_map in weight]
        pooled += [x.sum() for x in maps]
        k += 1
    assert k == len(OPTIONS["xdeepfm"]["cin_widths"])
    return first + w["cin_head.weight"] @ np.array(pooled) + mlp(w, "deep", np.concatenate(v))


def cross_network(w, v, layer):
    x0 = x = np.concatenate(v)
    for number in range(OPTIONS["dcn"]["cross_layers"]):
        x = layer(f"crosses.{number}", x0, x)
    assert f"crosses.{number + 1}.weight.weight" not in w
    hidden = mlp(w, "deep", x0, ends_linear=False) if any(key.startswith("deep.") for key in w) else []
    return w["head.weight"] @ np.concatenate([x, hidden]) + w["head.bias"]


def dcn(w, v, _):
    """arXiv 1708.05123, equations 3 (x0 x^T w + b + x) and 5."""
    return cross_network(
        w, v, lambda name, x0, x: np.outer(x0, x) @ w[f"{name}.weight.weight"][0] + w[f"{name}.bias"] + x
    )


def dcn_v2(w, v, _):
    """arXiv 2008.13535, equation 1 (x0 * (W x + b) + x), and the parallel structure of figure 1b."""
    return cross_network(w, v, lambda name, x0, x: x0 * (w[f"{name}.weight.weight"] @ x + w[f"{name}.weight.bias"]) + x)


def nfm(w, v, first):
    """arXiv 1708.05027, equations 2 to 5; batch normalisation behind the pooling too (section 3.2)."""
    pooled = sum(v_i * v_j for v_i, v_j in combinations(v, 2))
    if "behind_pooling.0.running_mean" in w:
        pooled = batch_norm(w, "behind_pooling.0", pooled)
    return first + mlp(w, "deep", pooled)


def first_layer_of_pnn(w, z, p):
    """arXiv 1611.00144, equations 2 to 5: l1 = ReLU(l_z + l_p + b1), each l with weights of its own."""
    of_z, of_p = np.split(w["deep.0.weight"], [len(z)], axis=1)
    l_z, l_p = (np.array([(of_n * x).sum() for of_n in of_x]) for of_x, x in ((of_z, z), (of_p, p)))
    whole = mlp(w, "deep", np.concatenate([z, p]))
    if "deep.1.running_mean" not in w and w["deep.0.weight"].shape[0] > 1:
        rest = {key: value for key, value in w.items() if key.startswith("deep.") and not key.startswith("deep.0.")}
        np.testing.assert_allclose(mlp(rest, "deep", np.maximum(l_z + l_p + w["deep.0.bias"], 0)), whole, rtol=1e-12)
    return whole


def pnn(w, v, _):
    """Equations 6 and 7 with each pair once, the lower triangle row by row."""
    return first_layer_of_pnn(w, np.concatenate(v), np.array([v[i] @ v[j] for i in range(len(v)) for j in range(i)]))


def pnn_outer(w, v, _):
    """Equations 9 to 12: the sum over all i and j, a vector with itself too."""
    p = sum(np.outer(v_i, v_j) for v_i, v_j in product(v, v))
    return first_layer_of_pnn(w, np.concatenate(v), p.flatten())


def autoint(w, v, _):
    """arXiv 1810.11921, equations 5 to 9; with hidden layers in `top` AutoInt+ (section 5.4)."""
    heads, wide = OPTIONS["autoint"]["attention_heads"], OPTIONS["autoint"]["head_width"]
    e = v
    for layer in range(OPTIONS["autoint"]["attention_layers"]):
        w_q, w_k, w_v = (w[f"attention.{layer}.{x}.weight"].reshape(heads, wide, -1) for x in ("query", "key", "value"))
        new = []
        for e_m in e:
            by_head = []
            for h in range(heads):
                alpha = softmax(np.array([(w_q[h] @ e_m) @ (w_k[h] @ e_k) for e_k in e]))
                by_head.append(sum(a * (w_v[h] @ e_k) for a, e_k in zip(alpha, e, strict=True)))
            new.append(np.maximum(np.concatenate(by_head) + w[f"attention.{layer}.residual.weight"] @ e_m, 0))
        e = new
    logit = w["head.weight"] @ np.concatenate(e) + w["head.bias"]
    return logit + mlp(w, "deep", np.concatenate(v)) if any(key.startswith("deep.") for key in w) else logit


TWINS = {
    "wide-deep": wide_deep,
    "deepfm": deepfm,
    "xdeepfm": xdeepfm,
    "dcn": dcn,
    "dcn-v2": dcn_v2,
    "nfm": nfm,
    "pnn": pnn,
    "pnn-outer": pnn_outer,
    "autoint": autoint,
}


def twin(name, model, dense, bags):
    """Probabilities [B, 1] of dense [B, M] and bags[t][b], a list of ids."""
    w, out = weights_of(model), []
    pool = np.sum if model.tables.mode == "sum" else np.mean
    tables = rows_of(model.tables)
    wide = [] if model.wide is None else rows_of(model.wide)
    for b, x in enumerate(dense.double().numpy()):
        v = [pool([rows[i] for i in bags[t][b]], axis=0) for t, rows in enumerate(tables)]
        first = None
        if model.wide is not None:
            first = w["first_order.bias"] + sum(pool([rows[i] for i in bags[t][b]]) for t, rows in enumerate(wide))
            if model.bottom_widths:
                first = first + sum(a * x_i for a, x_i in zip(w["first_order.dense.weight"][0], x, strict=True))
        if model.bottom_widths:
            v = [mlp(w, "bottom", x, ends_linear=model.bottom_end == "linear"), *v]
        out.append(1 / (1 + np.exp(-TWINS[name](w, v, first))))
    return np.array(out)


def draw(hot, size=9):
    """Dense features and bags of 1 to `hot` ids."""
    rng = np.random.default_rng(5)
    bags = [[rng.integers(0, n, rng.integers(1, hot + 1)).tolist() for _ in range(size)] for n in ROWS.values()]
    return torch.from_numpy(rng.random((size, DENSE), np.float32)), bags


def jagged(bags):
    every = [bag for table in bags for bag in table]
    return torch.tensor([i for bag in every for i in bag]), torch.tensor([0, *np.cumsum([len(bag) for bag in every])])


def check(name, model, hot=1):
    randomize(model).eval()
    dense, bags = draw(hot)
    if not model.bottom_widths:
        dense = dense[:, :0]
    expected = twin(name, model, dense, bags)
    assert expected.std() > 0.003 and ((expected > 0.001) & (expected < 0.999)).mean() > 0.5
    inputs = jagged(bags) if hot > 1 else (torch.tensor(bags).squeeze(2).T, None)
    np.testing.assert_allclose(model(dense, *inputs).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------- the tests


def test_every_registered_model_has_a_twin():
    assert {*TWINS, "dlrm"} == set(model_names())  # dlrm's is in test_dlrm.py


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "no dense"])
@pytest.mark.parametrize("name", TWINS)
def test_equals_the_papers_equations(name, dense):
    check(name, make(name, dense))


@pytest.mark.parametrize("name", TWINS)
def test_with_batch_normalisation_its_running_statistics_stand_before_each_relu(name):
    check(name, make(name, batch_norm=True, dropout=0.5))


@pytest.mark.parametrize("name", TWINS)
def test_a_linear_end_of_the_bottom_mlp(name):
    check(name, make(name, bottom_end="linear", batch_norm=True))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("name", TWINS)
def test_multi_layer_tables_and_bags(name, mode):
    check(name, make(name, k=7, mode=mode), hot=4)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "no dense"])
@pytest.mark.parametrize("name", TWINS)
def test_without_a_hidden_layer(name, dense):
    """A tower of (1,) is one linear layer; DCN is its cross network then, AutoInt its attention."""
    model = make(name, dense, top=(1,))
    assert name not in ("dcn", "dcn-v2", "autoint") or not any("deep" in key for key in model.state_dict())
    check(name, model)


def test_fm_term_counts_every_pair_once():
    """Three unit vectors along one axis have three pairs; nothing else contributes."""
    model = make("deepfm", dense=False)
    for value in model.state_dict().values():
        value.zero_()
    for part in model.tables.parts():
        part.group.part(part.index, part.counted_rows)[:, 0] = 1
    probability = model(torch.zeros(1, 0), torch.zeros(1, 3, dtype=torch.long))
    assert probability.item() == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-6)


def test_cross_layers_are_polynomials_of_their_number():
    """L cross layers on x reach degree L + 1: its finite differences of order L + 2 vanish, those of L + 1 do not."""
    for name, layers in (("dcn", 1), ("dcn", 3), ("dcn-v2", 2)):
        model = randomize(make(name, dense=False, cross_layers=layers, top=(1,))).double()
        x = torch.arange(8.0, dtype=torch.float64)[:, None, None] * model.tables.units[0].rows.weight[:3].detach()
        values = model.logit(x).detach().numpy()[:, 0]
        differences = [np.abs(np.diff(values, order)).max() for order in (layers + 1, layers + 2)]
        assert differences[1] < 1e-5 * differences[0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dcn", {"cross_layers": 0}, "cross_layers=0: at least 1"),
        ("dcn-v2", {"cross_layers": -1}, "cross_layers=-1"),
        ("xdeepfm", {"cin_widths": ()}, r"cin_widths=\[\]: at least one layer"),
        ("xdeepfm", {"cin_widths": (4, 0)}, r"cin_widths=\[4, 0\]"),
        ("autoint", {"attention_layers": 0}, "attention_layers=0"),
        ("autoint", {"attention_heads": 0}, "attention_heads=0"),
        ("autoint", {"head_width": 0}, "head_width=0"),
        ("pnn", {"bottom": (), "rows": {"a": 5}}, "one vector has no products"),
    ],
)
def test_options_that_make_no_model_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottom": (6, 9, 5)}, "ends in width 5, the tables' vectors are 4 wide"),
        ({"bottom": (4,)}, "bottom at least two"),
        ({"top": (8, 2)}, "top MLP ends in width 2"),
        ({"top": ()}, "must be positive"),
        ({"top": (0, 1)}, "must be positive"),
        ({"dropout": 1.0}, r"dropout=1.0 lies outside"),
        ({"dropout": -0.1}, r"dropout=-0.1 lies outside"),
    ],
)
def test_common_arguments_that_do_not_fit_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


@pytest.mark.parametrize("name", model_names())
def test_registered_defaults_are_the_constructors(name):
    given = make(name, **dict(model_options(name))).config()
    by_default = build_model(name, EmbeddingTables(plan_tables(ROWS, WIDTH)), bottom=(DENSE, 9, WIDTH), top=(8, 5, 1))
    assert given == by_default.config()
