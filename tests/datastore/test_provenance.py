"""Where a run's figures come from."""

import os
import shutil
import subprocess

import pytest
import torch

from datastore.provenance import commit_of, machine

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def git(tmp_path):
    """A checkout of one file, as a function that runs git in it."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    commit_of.cache_clear()

    def run(*words: str) -> str:
        return subprocess.run([*GIT, *words], cwd=tmp_path, capture_output=True, check=True, text=True).stdout.strip()

    run("init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    run("add", "code.py")
    run("commit", "-q", "-m", "one")
    return run


def test_the_commit_of_a_clean_checkout_whatever_results_lie_in_it(git, tmp_path):
    (tmp_path / "run.jsonl").write_text("{}\n")
    assert commit_of(tmp_path) == git("rev-parse", "--short", "HEAD")


def test_changed_code_does_not_pass_for_the_commit(git, tmp_path):
    head, marks = git("rev-parse", "--short", "HEAD"), set()
    for line in ("a = 2\n", "a = 3\n"):
        (tmp_path / "code.py").write_text(line)
        commit_of.cache_clear()
        marks.add(commit_of(tmp_path))
    assert len(marks) == 2 and all(mark.startswith(f"{head}+") for mark in marks)


def test_the_commit_is_that_of_the_code_at_the_start(git, tmp_path):
    before = commit_of(tmp_path)
    (tmp_path / "code.py").write_text("a = 2\n")
    git("commit", "-q", "-am", "two")
    assert commit_of(tmp_path) == before != git("rev-parse", "--short", "HEAD")


def test_a_folder_within_another_checkout_has_no_commit_of_its_own(git, tmp_path):
    (tmp_path / "vendored").mkdir()
    assert commit_of(tmp_path / "vendored") is None


def test_a_checkout_that_git_cannot_read_has_none(tmp_path):
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    assert commit_of(tmp_path) is None


def test_the_machine():
    about = machine(torch.device("cpu"))
    assert about["cores"] == os.cpu_count() and about["threads"] == torch.get_num_threads() and about["gpu"] is None
