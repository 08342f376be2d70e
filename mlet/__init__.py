"""Multi-layer embedding training (MLET): train each table as W1[n, k] @ W2[k, d], serve it as one [n, d] table.

Papers: arXiv 2006.05623 (Ghaemmaghami et al. 2020), arXiv 2309.15881 (Deng et al. 2023).
"""

from mlet.embedding import MultiLayerEmbedding, collapse_rows
from mlet.tables import EmbeddingTables, TableSpec

__version__ = "0.1.0"
__all__ = ["EmbeddingTables", "MultiLayerEmbedding", "TableSpec", "collapse_rows"]
