"""Multi-layer embedding training (MLET): train each table as W1[n, k] @ W2[k, d], serve it as one [n, d] table.

Papers: arXiv 2006.05623 (Ghaemmaghami et al. 2020), arXiv 2309.15881 (Deng et al. 2023).

For any torch model, in place:

    mlet.factorize(model, inner_dim=64, min_rows=1000)   # before the optimizer is built
    ...                                                  # train as ever
    model = mlet.collapse(model)                         # plain modules again: loads into the original class
"""

from torch import nn

from mlet.embedding import MultiLayerEmbedding, collapse_rows
from mlet.factorization import collapse_factorized, factorize
from mlet.tables import EmbeddingTables, TableSpec

__version__ = "0.1.0"
__all__ = ["EmbeddingTables", "MultiLayerEmbedding", "TableSpec", "collapse", "collapse_rows", "factorize"]


def collapse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Return the model with every W1 W2 as one plain table, with the same outputs.

    The result is checked to be finite before anything is replaced: after an error the model is as it was.

    Args:
        model: a model that went through `factorize` or holds `MultiLayerEmbedding` layers; or one of this project's
            CTR models, for which this is `mlet.inference.collapse` (a new model in eval mode).
        inplace: replace the layers in the given model instead of a copy; not for the CTR models.

    Raises:
        ValueError: there is nothing to collapse; a row is not finite; a CTR model with `inplace`.
    """
    if not isinstance(getattr(model, "tables", None), EmbeddingTables):
        return collapse_factorized(model, inplace)
    if inplace:
        raise ValueError(f"inplace: the tables of a {type(model).__name__} are not collapsed in place")
    from mlet.inference import collapse as collapse_ctr_model  # imports safetensors and the models: only if needed

    return collapse_ctr_model(model)
