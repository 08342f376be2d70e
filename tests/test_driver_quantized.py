"""Quantised tables from the checkpoint to the ONNX file, its quality in the result event, and scoring with it."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_driver_data import TRAIN, write_clicks

BAGS = f"{TRAIN} --arch-mlp-bot=1-8-4 --mlet-inner-dim=8 --data-set=schema --raw-data-file=clicks.json"


@pytest.mark.parametrize(("bits", "kind"), [(8, "one-hot"), (16, "one-hot"), (8, "bags"), (4, "bags")])
def test_an_onnx_file_with_quantised_tables_is_measured_and_scores(driver, tmp_path, small_tsv, bits, kind):
    if kind == "bags":
        write_clicks(tmp_path)
        header, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
        flags, new, labels = BAGS, [header, *rows[1350:]], [int(row.split(",")[1]) for row in rows[1350:]]
    else:
        rows = small_tsv.read_text().splitlines()[1800:1950]
        flags, new = f"{TRAIN} --arch-mlp-bot=13-8-4 --raw-data-file={small_tsv}", rows
        labels = [int(row[0]) for row in rows]
    trained = driver(f"{flags} --save-model=run --save-onnx=fp32.onnx")
    assert trained.code == 0 and trained.events[-1]["onnx"] is None, trained.err
    run = driver(f"{flags} --load-model=run/last --inference-only --quantize-emb-with-bit={bits} --save-onnx=m.onnx")
    assert run.code == 0, run.err
    onnx, size = run.events[-1]["onnx"], (tmp_path / "m.onnx").stat().st_size
    assert onnx == {"table_bits": bits, "auc": onnx["auc"], "logloss": onnx["logloss"], "bytes": size}
    assert (
        f"ONNX model with {bits}-bit tables: test auc {onnx['auc']:.5f}, logloss {onnx['logloss']:.5f}, {size} b"
        in run.out
    )
    for name in ("auc", "logloss"):  # evaluated in torch with torch's own quantised look-up
        assert onnx[name] == pytest.approx(run.events[-1]["test"][name], abs=1e-6)
    (tmp_path / "new.csv").write_text("\n".join(new) + "\n")
    scored = driver("--predict=new.csv --load-onnx=m.onnx --predictions=scores.txt")
    assert scored.code == 0, scored.err
    assert roc_auc_score(labels, np.loadtxt(tmp_path / "scores.txt")) == pytest.approx(onnx["auc"], abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--save-onnx=m.onnx --quantize-mlp-with-bit=8", "--save-onnx writes MLPs in fp32"),
        ("--save-collapsed=m --quantize-emb-with-bit=8", "--save-collapsed writes fp32 models"),
        ("--save-onnx=m.onnx --quantize-emb-with-bit=8 --qr-flag", "need plain tables"),
        ("--save-onnx=m.onnx --quantize-emb-with-bit=4 --md-flag", "need plain tables"),
    ],
)
def test_what_cannot_be_exported_quantised_is_refused(driver, flags, message):
    run = driver(f"{TRAIN} --inference-only {flags}")
    assert run.code == 2 and message in run.err and run.err.count("\n") == 1
