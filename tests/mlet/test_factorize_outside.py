"""`mlet.factorize` on unmodified models of other libraries: DeepFM and DIN of torch-rechub, LightGCN of PyG, torchrec.

Each: same outputs after `factorize`, trained in the library's own way, collapsed, loaded by the original class. Where a
library is not installed its test is skipped; see requirements-dev.txt.
"""

import warnings

import pytest
import torch
from torch import nn

import mlet
from mlet.factorized_layers import FactorizedEmbedding, FactorizedEmbeddingBag

ROWS = 1200


def library(name):
    """Import a library that is for this test only; what its import warns of is not our affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def check_factorized_model(build, run, train, layer_type, tables):
    """`build()` makes the library's model, `run(model)` its outputs, `train(model)` a few steps."""
    torch.manual_seed(0)
    model = build()
    before = run(model)
    single = [name for name, _ in model.named_parameters()]
    assert mlet.factorize(model, inner_dim=32) is model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, layer_type)}
    assert set(layers) == tables
    assert len(list(model.parameters())) == len(single) + len(tables)
    torch.testing.assert_close(run(model), before, atol=1e-5, rtol=1e-5)
    start = {name: (layer.w1.detach().clone(), layer.w2.detach().clone()) for name, layer in layers.items()}
    train(model)
    for name, layer in layers.items():
        assert not torch.equal(layer.w1, start[name][0]) and not torch.equal(layer.w2, start[name][1])
    trained = run(model)
    assert (trained - before).abs().max() > 1e-3
    collapsed = mlet.collapse(model)
    torch.testing.assert_close(run(collapsed), trained, atol=1e-5, rtol=1e-5)
    original = build()
    original.load_state_dict(collapsed.state_dict())
    assert [name for name, _ in original.named_parameters()] == single
    torch.testing.assert_close(run(original), trained, atol=1e-5, rtol=1e-5)


def rechub_features(kind, **sizes):
    features = library("torch_rechub.basic.features")
    return [getattr(features, kind)(name, **options) for name, options in sizes.items()]


def rechub_deepfm():
    from torch_rechub.models.ranking import DeepFM

    dense = rechub_features("DenseFeature", price={})
    sparse = rechub_features(
        "SparseFeature",
        user={"vocab_size": ROWS, "embed_dim": 8},
        item={"vocab_size": ROWS + 300, "embed_dim": 8},
        day={"vocab_size": 7, "embed_dim": 8},
    )
    return DeepFM(dense + sparse, sparse, mlp_params={"dims": [16], "dropout": 0.1, "activation": "relu"})


def rechub_din():
    """The history shares the target's table, which has a padding row."""
    from torch_rechub.models.ranking import DIN

    user = rechub_features("SparseFeature", user={"vocab_size": ROWS, "embed_dim": 8})
    history = {"vocab_size": ROWS + 300, "embed_dim": 8, "pooling": "concat", "shared_with": "item"}
    return DIN(
        features=user,
        history_features=rechub_features("SequenceFeature", history=history),
        target_features=rechub_features(
            "SparseFeature", item={"vocab_size": ROWS + 300, "embed_dim": 8, "padding_idx": 0}
        ),
        mlp_params={"dims": [16]},
        attention_mlp_params={"dims": [8], "use_softmax": False},
    )


def rechub_samples(count):
    draw = torch.Generator().manual_seed(1)
    samples = {
        "user": torch.randint(0, ROWS, (count,), generator=draw),
        "item": torch.randint(1, ROWS + 300, (count,), generator=draw),
        "day": torch.randint(0, 7, (count,), generator=draw),
        "history": torch.randint(0, ROWS + 300, (count, 5), generator=draw),
        "price": torch.rand(count, generator=draw),
    }
    return samples, torch.randint(0, 2, (count,), generator=draw)


@pytest.mark.parametrize("build", [rechub_deepfm, rechub_din])
def test_ctr_models_of_torch_rechub(build, tmp_path):
    library("torch_rechub")
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    samples, labels = rechub_samples(400)
    features = {name: value.numpy() for name, value in samples.items()}

    def train(model):
        loader, _, _ = DataGenerator(features, labels.numpy()).generate_dataloader(
            split_ratio=[1.0, 0.0], batch_size=40
        )
        trainer = CTRTrainer(model, optimizer_params={"lr": 0.02}, n_epoch=2, device="cpu", model_path=str(tmp_path))
        trainer.fit(loader)

    @torch.no_grad()
    def run(model):
        return model.eval()(samples)

    tables = {"embedding.embed_dict.user", "embedding.embed_dict.item"}
    check_factorized_model(build, run, train, FactorizedEmbedding, tables)


def test_lightgcn_of_torch_geometric_which_reads_the_weight():
    library("torch_geometric")
    from torch_geometric.nn import LightGCN

    draw = torch.Generator().manual_seed(2)
    edges = torch.randint(0, ROWS, (2, 4000), generator=draw)
    edges = torch.cat([edges, edges.flip(0)], dim=1)

    def train(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        model.train()
        for _ in range(3):
            liked, other = edges[:, :500], torch.randint(0, ROWS, (2, 500), generator=draw)
            rank = model(edges, edge_label_index=torch.cat([liked, other], dim=1))
            loss = model.recommendation_loss(*rank.chunk(2), node_id=edges[0, :500].unique())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def run(model):
        return model.eval()(edges)

    check_factorized_model(lambda: LightGCN(ROWS, 8, num_layers=2), run, train, FactorizedEmbedding, {"embedding"})


class WithTop(nn.Module):
    """The collection under a small net, as in torchrec's own models."""

    def __init__(self, collection):
        super().__init__()
        self.collection = collection
        self.top = nn.Linear(3 * 8, 1)

    def forward(self, features):
        return self.top(self.collection(features).values())[:, 0]


@pytest.mark.parametrize("weighted", [False, True])
def test_embedding_bag_collection_of_torchrec(weighted):
    torchrec = library("torchrec")

    def build():
        sum_pooling, mean_pooling = torchrec.PoolingType.SUM, torchrec.PoolingType.MEAN
        config = torchrec.EmbeddingBagConfig
        tables = [
            config(ROWS, 8, name="products", feature_names=["item", "history"], pooling=sum_pooling),
            config(ROWS, 8, name="tags", feature_names=["tag"], pooling=sum_pooling if weighted else mean_pooling),
        ]
        return WithTop(torchrec.EmbeddingBagCollection(tables=tables, is_weighted=weighted))

    draw = torch.Generator().manual_seed(3)
    bags = 3 * 20
    lengths = torch.randint(0, 4, (bags,), generator=draw)  # some are empty
    features = torchrec.KeyedJaggedTensor.from_lengths_sync(
        keys=["item", "history", "tag"],
        values=torch.randint(0, ROWS, (int(lengths.sum()),), generator=draw),
        lengths=lengths,
        weights=torch.rand(int(lengths.sum()), generator=draw) if weighted else None,
    )

    def train(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(3):
            optimizer.zero_grad()
            (model(features) - 1).square().mean().backward()
            optimizer.step()

    @torch.no_grad()
    def run(model):
        return model(features)

    names = {"collection.embedding_bags.products", "collection.embedding_bags.tags"}
    check_factorized_model(build, run, train, FactorizedEmbeddingBag, names)
