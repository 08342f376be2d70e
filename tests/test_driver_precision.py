"""The driver's --precision, --emb-precision, --compile and memory bill."""

import re
import shutil

import pytest
import torch

import dlrm_mlet

RANDOM = (
    "--arch-embedding-size=50-20-900 --arch-sparse-feature-size=4 --arch-mlp-bot=5-8-4 --arch-mlp-top=8-1 "
    "--mini-batch-size=16 --data-size=100 --loss-function=bce --round-targets=True --learning-rate=0.1 --print-freq=1"
)


def losses(result) -> list[float]:
    assert result.code == 0, result.err
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", result.out)]


@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_bf16_arithmetic_and_tables_follow_fp32(driver, k, optimizer):
    rate = 0.1 if optimizer == "sgd" else 0.003
    options = f"{RANDOM} --mlet-inner-dim={k} --optimizer={optimizer} --learning-rate={rate} --nepochs=2"
    exact = losses(driver(options))
    for flags in ("--precision=bf16", "--emb-precision=bf16", "--precision=bf16 --emb-precision=bf16"):
        rough = losses(driver(f"{options} {flags}"))
        assert rough != exact and rough == pytest.approx(exact, abs=0.02)


def test_tables_in_bf16_take_half_the_memory_and_resume_exactly(driver):
    options = f"{RANDOM} --emb-precision=bf16 --mlet-inner-dim=8 --metrics-file=run.jsonl"
    whole = driver(f"{options} --nepochs=3 --save-collapsed=whole.safetensors")
    exact = driver(f"{options} --emb-precision=fp32").events[-1]
    rows = 50 + 20 + 900 + 3  # with the padding rows
    assert exact["train_bytes"] - whole.events[-1]["train_bytes"] == rows * 8 * 2
    driver(f"{options} --nepochs=2 --save-model=run")
    rest = driver(f"{options} --nepochs=3 --resume=run --save-collapsed=rest.safetensors")
    assert rest.code == 0, rest.err
    assert (rest.folder / "whole.safetensors").read_bytes() == (rest.folder / "rest.safetensors").read_bytes()


@pytest.mark.parametrize("k", [0, 8])
def test_tables_in_bf16_export_what_was_evaluated(driver, k):
    run = driver(
        f"{RANDOM} --emb-precision=bf16 --mlet-inner-dim={k} --save-onnx=model.onnx --save-collapsed=m.safetensors"
    )
    assert run.code == 0 and (run.folder / "model.onnx").exists(), run.err


def test_learned_pooling_weights_need_tables_in_fp32(driver):
    run = driver(f"{RANDOM} --weighted-pooling=learned --emb-precision=bf16")
    assert run.code == 2 and "leave out --emb-precision" in run.err and run.err.count("\n") == 1


def test_where_bf16_is_emulated_the_driver_says_so(driver, monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(dlrm_mlet, "computes_in_bf16", lambda _device, native=native: native)
        assert ("no bf16 arithmetic" in driver(f"{RANDOM} --precision=bf16").err) is not native
        assert not driver(f"{RANDOM} --precision=bf16 --inference-only").err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on the CPU needs a C++ compiler")
@pytest.mark.parametrize("flags", ["", "--precision=bf16", "--arch-interaction-itself"])
def test_compiled_layers_follow_eager_ones(driver, flags):
    """100 samples in batches of 16: the last batch is of another size."""
    options = f"{RANDOM} {flags} --nepochs=2"
    torch._dynamo.reset()
    compiled = losses(driver(f"{options} --compile"))
    assert compiled == pytest.approx(losses(driver(options)), abs=1e-5 if not flags.startswith("--prec") else 5e-3)


def test_the_bill_comes_before_the_model(driver, monkeypatch):
    def no_model(*_):
        raise AssertionError("the model is built before the bill is checked")

    bill = re.search("Memory: tables .* available", driver(RANDOM).out)
    assert bill and "inference" in bill[0]
    monkeypatch.setattr(dlrm_mlet, "make_model", no_model)
    monkeypatch.setattr(dlrm_mlet, "available_bytes", lambda _device: 1 << 20)
    run = driver(f"{RANDOM} --optimizer=adam")
    assert run.code == 2 and "this run needs about" in run.err and "1.0 MB are available" in run.err
    assert run.err.count("\n") == 1
