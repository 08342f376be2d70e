import numpy as np
import pytest
import torch

from mlet.models import build_model, model_names, register_model
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

ROWS = {"a": 10, "b": 20, "c": 5}


def make(**arguments):
    tables = EmbeddingTables(plan_tables(ROWS, 4))
    model = build_model("dlrm", tables, **({"bottom": (6, 9, 4), "top": (8, 1)} | arguments))
    model.initialize(np.random.RandomState(2), 2, "normal")
    return model


def numpy_twin(model, dense, ids, interaction, itself):
    """The equations of arXiv 1906.00091 with loops over samples and pairs."""

    def run(layers, x):
        linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        for number, layer in enumerate(linear):
            x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
            is_last = number == len(linear) - 1
            if is_last and layers is model.bottom and model.bottom_end == "linear":
                continue
            x = 1 / (1 + np.exp(-x)) if is_last and layers is model.top else np.maximum(x, 0)
        return x

    tables = [p.group.part(p.index, p.counted_rows).numpy() for p in model.tables.parts()]
    out = []
    for x, row in zip(dense.numpy(), ids.numpy(), strict=True):
        x = run(model.bottom, x)
        vectors = [x, *(table[i] for table, i in zip(tables, row, strict=True))]
        if interaction == "cat":
            z = np.concatenate(vectors)
        else:
            pairs = [vectors[i] @ vectors[j] for i in range(4) for j in range(i + int(itself))]
            z = np.concatenate([x, pairs])
        out.append(run(model.top, z))
    return np.array(out)


@pytest.mark.parametrize("end", ["relu", "linear"])
@pytest.mark.parametrize(("interaction", "itself"), [("dot", False), ("dot", True), ("cat", False)])
def test_equals_the_papers_equations(interaction, itself, end):
    model = make(interaction=interaction, itself=itself, bottom_end=end)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    dense, ids = torch.rand(7, 6), torch.stack([torch.randint(0, n, (7,)) for n in ROWS.values()], dim=1)
    expected = numpy_twin(model, dense, ids, interaction, itself)
    np.testing.assert_allclose(model(dense, ids).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_initial_mlps_are_the_legacy_generators_draws():
    model = make()
    rng = np.random.RandomState(2)
    for n in ROWS.values():
        rng.uniform(size=(n, 4))
    for inputs, outputs in ((6, 9), (9, 4), (4 + 6, 8), (8, 1)):
        layer = next(m for m in model.modules() if getattr(m, "in_features", 0) == inputs and m.out_features == outputs)
        weight = rng.normal(0, np.sqrt(2 / (inputs + outputs)), (outputs, inputs)).astype(np.float32)
        assert np.array_equal(layer.weight.detach().numpy(), weight)
        assert np.array_equal(
            layer.bias.detach().numpy(), rng.normal(0, np.sqrt(1 / outputs), outputs).astype(np.float32)
        )


def test_loss_threshold_clamps_the_probability():
    model = make(loss_threshold=0.45)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    dense, ids = torch.rand(64, 6), torch.zeros(64, 3, dtype=torch.long)
    out = model(dense, ids).detach()
    model.loss_threshold = 0.0
    free = model(dense, ids).detach()
    assert ((free < 0.45) | (free > 0.55)).any()
    assert torch.equal(out, free.clamp(0.45, 0.55))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottom": (6, 9, 5)}, "ends in width 5, the tables' vectors are 4 wide"),
        ({"bottom": (4,)}, "bottom at least two"),
        ({"top": (8, 2)}, "top MLP ends in width 2"),
        ({"top": ()}, "must be positive"),
        ({"top": (0, 1)}, "must be positive"),
        ({"interaction": "sum"}, "interaction 'sum' is not known"),
        ({"bottom_end": "tanh"}, "bottom end 'tanh' is not known; choose from relu, linear"),
    ],
)
def test_widths_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_registry_refuses_duplicates_and_unknown_names():
    assert "dlrm" in model_names()
    with pytest.raises(ValueError, match="already registered by mlet.models.dlrm.DLRM"):
        register_model("dlrm", "x", "Y")
    with pytest.raises(ValueError, match="'fm' is not known; choose from autoint, dcn, .*dlrm"):
        build_model("fm", None)
