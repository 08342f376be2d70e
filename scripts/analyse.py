"""The measurements of scripts/analyse.sh, which says how to run it. The formulas are in mlet/analysis.py.

Legend: n rows, K inner dimension, d width, G gradient dL/dW of a batch's mean loss, N batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 (the checkout must be found first)
import torch  # noqa: E402
from analyse_pictures import draw_all  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import data_utils  # noqa: E402
import dlrm_mlet  # noqa: E402
from datastore.schema import is_store, read_schema  # noqa: E402
from mlet import analysis  # noqa: E402
from mlet.checkpoint import load_checkpoint  # noqa: E402
from mlet.files import atomic_file  # noqa: E402
from mlet.inference import collapse  # noqa: E402
from mlet.models import model_from_config  # noqa: E402
from sources import Batch  # noqa: E402

POOLING = "learned pooling weights p: the table is diag(p) W1 W2, whose step has more terms"
MASKED = "the run masked the cross-category term: the factors lie beside the table, which is not their product"
COLUMNS = ("table", "rows", "K", "d", "s_1", "effective rank", "stable rank", "out-of-batch norm", "out-of-batch share",
           "imbalance", "general law off by", "balanced law off by", "equal weights off by")  # fmt: skip


@dataclass
class Run:
    """A checkpoint and its data, opened."""

    source: Path
    flags: argparse.Namespace
    model: nn.Module
    batches: Callable[[], Iterator[Batch]]
    batches_per_epoch: int
    unknown: Sequence[str]  # tables that are trained on the unknown id
    position: tuple[int, int]  # epoch, iteration


@dataclass
class Table:
    """The numbers of one stored table part; means over the batches where a batch is needed."""

    name: str
    rows: int
    inner_dim: int  # 0: a single layer
    width: int
    singular_values: list[float]
    effective_rank: float
    stable_rank: float
    imbalance: float | None = None
    step: dict[str, float] = field(default_factory=dict)  # see mlet.analysis.StepSplit
    laws: dict[str, dict[str, float]] = field(default_factory=dict)  # "general" and "balanced" -> see mlet.analysis.Law
    skipped: str = ""  # why there is no step


# ----------------------------------------------------------------------------------------------------------- the run


def open_run(directory: str, store: str) -> Run:
    """Rebuild model and training batches of a checkpoint. Raises ValueError with what is missing."""
    source = dlrm_mlet.find_checkpoint(directory, "last")
    tensors, state = load_checkpoint(source)
    if "model" not in state or "flags" not in state:
        raise ValueError(f"{source} is not a checkpoint of dlrm_mlet.py --save-model")
    flags = argparse.Namespace(**(vars(dlrm_mlet.parse_flags([])) | state["flags"]))
    model = model_from_config(state["model"])
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("masked.")}
    dlrm_mlet.load_weights(model, kept, source)
    batches, samples, unknown = open_batches(flags, state["store"], store)
    if state.get("unknown_by_dropout"):
        unknown = [spec.name for spec in model.tables.specs]
    whole = math.ceil(samples / flags.mini_batch_size)
    per_epoch = min(flags.num_batches, whole) if flags.num_batches > 0 else whole
    position = state["progress"]["epoch"], state["progress"]["iteration"]
    # without dropout, and with the running statistics of a batch norm: the same function in every batch
    return Run(source, flags, model.eval(), batches, per_epoch, unknown, position)


def open_batches(
    flags: argparse.Namespace, key: str | None, directory: str
) -> tuple[Callable[[], Iterator[Batch]], int, Sequence[str]]:
    """Training batches in the run's order, training samples, and which tables are trained on the unknown id."""
    if flags.data_generation == "random":
        flags.num_workers = 0
        data = dlrm_mlet.open_random_data(flags)
        return lambda: data.train_batches(0), data.train_samples, ()
    store = data_utils.Store(find_store(flags, key, directory), dlrm_mlet.task_names(flags))
    rows = store.training_order(flags.data_randomize, np.random.RandomState(flags.numpy_rand_seed))
    return lambda: store.batches(rows, flags.mini_batch_size), len(rows), store.schema["trained_unknown"]


def find_store(flags: argparse.Namespace, key: str | None, directory: str) -> Path:
    """The store that the run was trained on, known by its key: ids mean something in that one only."""
    named = directory or flags.processed_data_file
    places = [Path(named), Path(f"{named}-{key}")] if named else [Path(".dlrm_store", str(key))]
    for place in places:
        if is_store(place) and read_schema(place)["key"] == key:
            return place
    raise ValueError(
        f"the store {key} that the run was trained on is not at {' or '.join(map(str, places))}: call this where the "
        "run was started, name its folder with --store, or prepare it again with the run's flags and --prepare-only"
    )


# ------------------------------------------------------------------------------------------------------ measurements


class Measurement:
    """Spectra of all tables, then what each batch adds: split of the step and check of the laws.

    G comes from the collapsed model, in which the table is a parameter; dL/dW1 and dL/dW2 from the model as it is
    trained. The laws are thus checked on what backward really returns, within float32.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.factors = list(analysis.table_factors(run.model, run.unknown))
        self.grams = [None if f.w2 is None else analysis.gram(f.w1) for f in self.factors]
        spectra = analysis.spectra(run.model, run.unknown)
        self.tables = [self._table(f, torch.tensor(spectra[f.name], dtype=torch.float64)) for f in self.factors]
        self.last_checks: dict[str, analysis.LawCheck] = {}
        self.losses: list[float] = []
        self._steps: dict[str, list[dict[str, float]]] = {}
        self._laws: dict[str, list[analysis.LawCheck]] = {}
        self.single = collapse(run.model)
        self.loss = dlrm_mlet.make_loss(run.flags, torch.device("cpu"))

    def _table(self, factors: analysis.Factors, values: Tensor) -> Table:
        inner_dim = 0 if factors.w2 is None else factors.w1.shape[1]
        ranks = analysis.effective_rank(values), analysis.stable_rank(values)
        return Table(factors.name, len(factors.w1), inner_dim, len(values), values.tolist(), *ranks)

    def add(self, batch: Batch) -> None:
        """Measure one batch."""
        loss, grads = self._gradients(self.single, batch)
        self.losses.append(loss)
        own = grads
        if any(factors.w2 is not None for factors in self.factors):
            _, own = self._gradients(self.run.model, batch)
        flags = self.run.flags
        rate = flags.learning_rate * flags.emb_learning_rate_multiplier
        w2_rate = flags.learning_rate * flags.mlet_w2_rate_multiplier
        for factors, w1_gram, grad, live in zip(self.factors, self.grams, grads, own, strict=True):
            if self._reason_to_skip(factors):
                continue
            step = analysis.step_split(factors.w1, factors.w2, grad.rows, grad.values, rate, w2_rate, w1_gram)
            numbers = asdict(step) | {"share_outside": step.share_outside, "outside_per_row": step.outside_per_row}
            self._steps.setdefault(factors.name, []).append(numbers)
            if factors.w2 is not None:
                live_grads = live.values, live.w2
                check = analysis.law_check(factors.w1, factors.w2, grad.rows, grad.values, live_grads, w1_gram)
                self._laws.setdefault(factors.name, []).append(check)
                self.last_checks[factors.name] = check

    def _gradients(self, model: nn.Module, batch: Batch) -> tuple[float, list[analysis.PartGradient]]:
        loss = self.loss(model(batch.dense, batch.ids, batch.offsets).float(), batch.labels)
        if not torch.isfinite(loss):
            raise ValueError("the loss of a training batch is not finite: the run diverged")
        return loss.item(), analysis.part_gradients(model.tables, loss)

    def _reason_to_skip(self, factors: analysis.Factors) -> str:
        if self.run.flags.mlet_cross_term == "masked":
            return MASKED
        return "" if factors.pooling is None else POOLING

    def finish(self) -> list[Table]:
        """The tables with the means over all batches."""
        for table, factors in zip(self.tables, self.factors, strict=True):
            table.skipped = self._reason_to_skip(factors)
            table.step = means(self._steps.get(table.name, []))
            checks = self._laws.get(table.name, [])
            if checks:
                table.imbalance = checks[0].imbalance
                for law in ("general", "balanced"):
                    table.laws[law] = means([law_numbers(getattr(check, law)) for check in checks])
        return self.tables


def law_numbers(law: analysis.Law) -> dict[str, float]:
    """How well a law holds."""
    names = ("difference", "difference_of_equal_weights", "correlation")
    return {name: getattr(law, name) for name in names}


def means(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the batches."""
    return {name: sum(result[name] for result in results) / len(results) for name in (results[0] if results else ())}


def spectrum_events(path: str, batches_per_epoch: int) -> list[tuple[float, dict[str, list[float]]]]:
    """Epochs passed and singular values by table, of the "spectrum" events of a metrics file."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # half a line of a killed run
            continue
        if event.get("event") == "spectrum":
            found.append((event["epoch"] + event["iteration"] / batches_per_epoch, event["tables"]))
    return found


# ------------------------------------------------------------------------------------------------------------ report

EXPLANATION = """\
- **rows, K, d**: ids of the table (and the unknown id, where it is trained), inner dimension, width as it is served.
- **s_1, effective rank, stable rank**: the largest singular value of the table as it is served, exp of the entropy of
  s / sum(s), and sum(s^2) / s_1^2: how many of the d directions the table really uses.
- **out-of-batch norm, share**: the norm of what one SGD step at the run's rate does to rows that were not in the batch,
  and its part of ||W' - W||^2; a single layer has none by construction.
- **imbalance**: ||W1^T W1 - W2 W2^T|| / (||W1^T W1|| + ||W2 W2^T||), 0 where the factors are balanced, at most 1.
- **general law off by**: relative difference between the first-order step, from the gradients that training gets, and
  -(s_i(W1)^2 + s_j(W2)^2) g_ij in the singular directions; it holds for any factors, so this is rounding in float32.
- **balanced law off by**: the same for -(s_i + s_j) g_ij of the table itself; it holds where the factors are balanced.
- **equal weights off by**: the same for the best single number in place of all s_i + s_j: what the law has to beat."""


def report(run: Run, tables: Sequence[Table], losses: Sequence[float], pictures: dict[str, str], note: str) -> str:
    """The Markdown text."""
    epoch, iteration = run.position
    flags, mean_loss = run.flags, sum(losses) / len(losses)
    lines = [
        f"# Tables of {run.source}",
        "",
        f"Saved at epoch {epoch}, iteration {iteration}: {flags.arch_model}, K = {flags.mlet_inner_dim}, "
        f"d = {flags.arch_sparse_feature_size}. Step: plain SGD at rate {flags.learning_rate:g}, mean over "
        f"{len(losses)} training batches of {flags.mini_batch_size}, each from these weights (mean loss "
        f"{mean_loss:.5f}).{differences(flags)}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *(f"| {' | '.join(cells(table))} |" for table in tables),
        "",
        EXPLANATION,
        *(f"- {table.name} has no step: {table.skipped}." for table in tables if table.skipped),
        "",
        *(f"![{title}]({name})" for name, title in pictures.items()),
    ]
    return "\n".join([*lines, *(["", note] if note else [])]) + "\n"


def differences(flags: argparse.Namespace) -> str:
    """In which ways the run's own steps were not those of the report."""
    of_rows, of_w2 = flags.emb_learning_rate_multiplier, flags.mlet_w2_rate_multiplier
    text = ""
    if (of_rows, of_w2) != (1, 1):
        text += f" Rows and W2 take {of_rows:g} and {of_w2:g} times that rate; the laws are those of equal rates."
    if flags.optimizer != "sgd":
        text += f" The run was trained with {flags.optimizer}, whose steps differ."
    if flags.emb_optimizer not in ("same", flags.optimizer):
        text += f" Its tables' rows were trained with {flags.emb_optimizer}."
    if flags.emb_l2:
        text += " The run's L2 penalty is left out."
    if flags.emb_weight_decay or flags.emb_idle_decay or flags.emb_clip or flags.emb_id_dropout:
        text += " So are its decay and clipping of rows and its id dropout."
    return text


def cells(table: Table) -> list[str]:
    """One row of the report's table."""
    general, balanced = table.laws.get("general", {}), table.laws.get("balanced", {})
    numbers = [table.singular_values[0], table.effective_rank, table.stable_rank,
               table.step.get("outside"), table.step.get("share_outside"), table.imbalance,
               general.get("difference"), balanced.get("difference"),
               balanced.get("difference_of_equal_weights")]  # fmt: skip
    shown = ("-" if value is None else f"{value:.3g}" for value in numbers)
    return [table.name, str(table.rows), str(table.inner_dim or "-"), str(table.width), *shown]


def plain(value: object) -> object:
    """The same tree with NaN as None: strict JSON."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = dlrm_mlet.OneLineParser(prog="analyse.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", help="DIR of --save-model (its last state), or one checkpoint in it")
    add("--metrics-file", default="", help='with "spectrum" events; default: that of the run, if it is there')
    add("--batches", type=dlrm_mlet.at_least(1), default=20, help="training batches to measure")
    add("--store", default="", help="the run's prepared data, where it is not where the run had it")
    add("--out", default="", help="folder for the results; default: DIR/analysis")
    return parser.parse_args(arguments)


def analyse(flags: argparse.Namespace) -> None:
    """Measure, draw, write."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default; said aloud, torch does not warn about it
    run = open_run(flags.run, flags.store)
    metrics = flags.metrics_file or run.flags.metrics_file or ""
    known = flags.metrics_file or Path(metrics).is_file()
    events = spectrum_events(metrics, run.batches_per_epoch) if metrics and known else []
    out = Path(flags.out or Path(dlrm_mlet.without_checkpoint_name(str(run.source)), "analysis"))
    out.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(run)
    for batch in itertools.islice(run.batches(), flags.batches):
        measurement.add(batch)
    tables = measurement.finish()
    pictures, note = draw_all(out, tables, measurement.last_checks, events)
    numbers = {
        "checkpoint": str(run.source),
        "epoch": run.position[0],
        "iteration": run.position[1],
        "flags": vars(run.flags),
        "batches": len(measurement.losses),
        "mean_loss": sum(measurement.losses) / len(measurement.losses),
        "tables": {table.name: asdict(table) for table in tables},
        "trajectory": [{"epochs": epochs, "tables": values} for epochs, values in events],
    }
    with atomic_file(out / "report.json", "w") as file:
        json.dump(plain(numbers), file, indent=1, allow_nan=False)
    with atomic_file(out / "report.md", "w") as file:
        file.write(report(run, tables, measurement.losses, pictures, note))
    print("\n".join([f"Report: {out / 'report.md'}", *([note] if note else [])]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; what cannot be analysed is one line and exit code 2."""
    flags = parse(arguments)
    try:
        analyse(flags)
    except (ValueError, OSError) as error:
        print(f"analyse.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
