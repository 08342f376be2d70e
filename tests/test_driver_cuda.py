"""The driver on a GPU: the CPU's losses, nothing that waits within a step, and the same step as a CUDA graph."""

import pytest
import torch

from dlrm_mlet import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

DATA = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=8 --arch-mlp-bot=13-32-8 "
    "--arch-mlp-top=32-1 --loss-function=bce --mini-batch-size=64 --print-freq=1 --metrics-file=run.jsonl "
    "--processed-data-file=store --nepochs=2"
)
VARIANTS = {
    "sgd": "--learning-rate=0.2",
    "adagrad": "--optimizer=adagrad --learning-rate=0.02",
    "rwsadagrad": "--optimizer=rwsadagrad --learning-rate=0.02",
    "adam": "--optimizer=adam --learning-rate=0.001",
    "mlet": "--mlet-inner-dim=16 --learning-rate=0.2",
    "mlet-adam": "--mlet-inner-dim=16 --optimizer=adam --learning-rate=0.001 --emb-learning-rate-multiplier=10",
    "schedule": "--learning-rate=0.2 --lr-num-warmup-steps=5 --lr-decay-start-step=20 --lr-num-decay-steps=20",
    "row-rate": "--optimizer=adam --learning-rate=0.001 --emb-lr-frequency=log --emb-lr-halflife=50",
    "cures": "--optimizer=adam --learning-rate=0.001 --emb-clip=0.1 --emb-l2=0.001 --emb-weight-decay=0.01 "
    "--emb-idle-decay=0.001 --emb-id-dropout=0.1",
    "rows-apart": "--optimizer=adam --learning-rate=0.001 --emb-optimizer=rwsadagrad --emb-learning-rate-multiplier=5",
    "reinit": "--optimizer=adam --learning-rate=0.001 --emb-reinit=epoch",
    "hash": "--hash-method=double --hash-min-rows=50 --optimizer=adam --learning-rate=0.001",
    "quotient-remainder": "--qr-flag --optimizer=rwsadagrad --learning-rate=0.02",
    "deepfm": "--arch-model=deepfm --batch-norm --optimizer=adam --learning-rate=0.001",
}


def losses(run):
    assert run.code == 0, run.err
    return [event["loss"] for event in run.events if event["event"] == "train"]


def train(driver, small_tsv, flags):
    return losses(driver(f"{DATA} {flags}", "--raw-data-file", small_tsv))


def test_several_tasks_train_alike(driver):
    flags = (
        "--data-generation=dataset --data-set=multitask-synthetic --synthetic-rows=6000 --arch-sparse-feature-size=8 "
        "--tasks=click,cart,checkout --task-heads=mmoe --arch-mlp-bot=13-32-8 --arch-mlp-top=32-1 --loss-function=bce "
        "--mini-batch-size=64 --print-freq=10 --metrics-file=run.jsonl --optimizer=adam --learning-rate=0.001"
    )
    cpu, graph = (losses(driver(f"{flags} {more}")) for more in ("", "--use-gpu --save-onnx=m.onnx"))
    assert graph == pytest.approx(cpu, rel=3e-3) and len(cpu) > 5


@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_trains_as_the_cpu_does_and_a_graph_as_single_kernels(driver, small_tsv, name):
    cpu, eager, graph = (
        train(driver, small_tsv, f"{VARIANTS[name]} {more}")
        for more in ("", "--use-gpu --cuda-graph=off", "--use-gpu --save-onnx=m.onnx")
    )
    assert len(graph) == len(cpu) > 50
    assert graph == pytest.approx(eager, rel=1e-4)
    assert graph == pytest.approx(cpu, rel=3e-3)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("more", ["", "--cuda-graph=off", "--precision=bf16", "--emb-precision=bf16"])
def test_no_step_waits_for_the_gpu(driver, small_tsv, name, more, monkeypatch):
    if "emb-precision" in more and name in ("row-rate", "cures", "reinit"):
        pytest.skip("rates by row are for tables in fp32")
    step, seen = Trainer._step, []

    def watched(self, batch):
        whole = len(batch.labels) == 64  # the last batch of an epoch has another shape, and kernels of its own
        seen.append(whole)
        torch.cuda.set_sync_debug_mode("error" if len(seen) > 6 and whole else "default")
        try:
            step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched)
    train(driver, small_tsv, f"{VARIANTS[name]} {more} --use-gpu")
    assert sum(seen) > 50


def test_dropout_in_a_graph_draws_anew_each_step(driver, small_tsv):
    """With a rate of 0 and one batch again and again, only dropout changes the loss."""
    flags = "--use-gpu --learning-rate=0 --dropout=0.5 --num-batches=1 --nepochs=8 --data-randomize=none"
    assert len(set(train(driver, small_tsv, flags))) == 8


def test_after_a_bad_loss_nothing_is_updated(driver, small_tsv):
    run = driver(f"{DATA} --use-gpu --learning-rate=1e30 --print-freq=20", "--raw-data-file", small_tsv)
    assert run.code == 2 and "the loss is not finite at iteration" in run.err and run.err.count("\n") == 1


def test_what_cannot_be_captured_is_said_in_a_line(driver, small_tsv, monkeypatch):
    note = Trainer._mask_bad_gradients

    def waits(self, loss):
        float(loss)
        note(self, loss)

    monkeypatch.setattr(Trainer, "_mask_bad_gradients", waits)
    run = driver(f"{DATA} --use-gpu", "--raw-data-file", small_tsv)
    assert run.code == 2 and "--cuda-graph=off" in run.err and run.err.count("\n") == 1
