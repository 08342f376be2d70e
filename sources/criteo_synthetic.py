"""`--data-set=criteo-synthetic`: planted rows in the Criteo Kaggle format, generated on first use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sources import SourceOptions
from sources.kaggle import KaggleSource
from sources.synthetic import teacher_probabilities, write_criteo_tsv

GENERATOR_VERSION = 1  # raise it when the generator's rows change, so that no older file passes for the new one


class CriteoSyntheticSource(KaggleSource):
    """Writes the raw rows of `sources.synthetic` into the store folder and reads them.

    Raises:
        ValueError: a raw path is given, though this data is generated.
    """

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if raw_data_file:
            raise ValueError(
                f"--raw-data-file={raw_data_file}: criteo-synthetic is generated (--synthetic-rows, --synthetic-seed); "
                "a file in the Criteo format is read with --data-set=kaggle"
            )
        rows, seed = options.synthetic_rows, options.synthetic_seed
        path = Path(options.work_folder) / f"criteo-synthetic-v{GENERATOR_VERSION}-{rows}-{seed}.txt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_criteo_tsv(path, rows, seed)
        super().__init__(str(path), options)

    def best_auc_scores(self) -> np.ndarray | None:
        """The planted teacher's click probability of each raw row, float32 [rows]."""
        return teacher_probabilities(self.paths[0])
