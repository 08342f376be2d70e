from pathlib import Path

import numpy as np
import pytest

from sources import SourceOptions
from sources.criteo_synthetic import CriteoSyntheticSource


def options(tmp_path, rows=140, seed=1):
    return SourceOptions(synthetic_rows=rows, synthetic_seed=seed, work_folder=Path(tmp_path, "store"))


def test_rows_are_generated_once_and_read_like_kaggles(tmp_path):
    source = CriteoSyntheticSource("", options(tmp_path))
    blocks = list(source.blocks())
    assert sum(block.frame.height for block in blocks) == 140 and blocks[0].frame.width == 1 + 13 + 26
    written = source.paths[0].stat().st_mtime_ns
    assert CriteoSyntheticSource("", options(tmp_path)).paths[0].stat().st_mtime_ns == written
    assert CriteoSyntheticSource("", options(tmp_path, seed=2)).paths != source.paths
    assert source.split(140) == CriteoSyntheticSource("", options(tmp_path, rows=210)).split(140)


def test_the_teachers_probability_of_each_row_is_known(tmp_path):
    source = CriteoSyntheticSource("", options(tmp_path, rows=2000))
    scores = source.best_auc_scores()
    labels = np.concatenate([block.frame["click"] for block in source.blocks()])
    assert scores.shape == (2000,) and scores.dtype == np.float32
    assert scores.mean() == pytest.approx(labels.mean(), abs=4 * (0.25 / 2000) ** 0.5)


def test_a_raw_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="criteo-synthetic is generated"):
        CriteoSyntheticSource("train.txt", options(tmp_path))
