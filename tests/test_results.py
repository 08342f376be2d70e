"""What is published: links lead somewhere, raw lines are whole, and the tables' figures are the raw lines' means."""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from study import as_name  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md"]
RUNS = sorted((ROOT / "results").glob("*/*/runs.jsonl"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path):
    return str(path.relative_to(ROOT / "results").parent)


def anchors(page):
    """As GitHub makes them of headings: small letters, digits and hyphens."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else "results")
def test_every_link_leads_somewhere(page):
    dead = []
    for link in LINK.findall(page.read_text()):
        place, _, anchor = link.partition("#")
        if place.startswith("http"):
            continue
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_there_are_results():
    assert len(RUNS) > 15


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_raw_lines_say_what_was_run_on_what(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["run"] for line in lines}) == len(lines)
    for line in lines:
        assert re.fullmatch(r"[0-9a-f]{64}", line["data_sha256"]) and line["versions"]["torch"]
        assert line["config"] and line["config"].get("numpy_rand_seed", line["seed"]) == line["seed"]
        assert 0 <= line["test"]["auc"] <= 1


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_what_is_kept_names_no_folder_of_a_machine(path):
    for kept in path.parent.iterdir():
        if kept.suffix != ".png":
            assert not re.search(r"(?<![\w.}])/(?:home|root|tmp|work|Users|mnt)/", kept.read_text()), kept


def method_of(row):
    """The name of the runs that a line of cells.csv is the mean of."""
    if "model" in row:
        return f"{row['model']}.{row['recipe']}.{row['dim']}"
    bits = "" if row["bits"] == "32" else f"-{row['bits']}bit"
    return (f"{row['recipe']}.{row['hash']}" if "hash" in row else row["recipe"]) + bits


MEANS = [path for path in RUNS if path.parts[-3].startswith(("reproduce_mlet", "equal_bytes"))]


@pytest.mark.parametrize("path", MEANS, ids=name_of)
def test_the_tables_figures_are_the_means_of_the_raw_lines(path):
    """Over seeds, at the evaluation that validation chose."""
    aucs = {}
    for line in map(json.loads, path.read_text().splitlines()):
        aucs.setdefault(line["run"].rpartition("-")[0], []).append((line["best"] or line)["test"]["auc"])
    with open(path.parent / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        runs = aucs[method_of(row) + as_name(row["setting"])]
        assert len(runs) == int(row["seeds"]) and float(row["auc"]) == pytest.approx(statistics.mean(runs), abs=1e-12)
