"""What made a file stands in it."""

import dataclasses
import json
import subprocess

import pytest
import torch

from lib import provenance as module
from lib.provenance import Provenance, provenance, read_provenance

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forgotten():
    provenance.cache_clear()
    yield
    provenance.cache_clear()


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path.resolve())
    assert provenance(CPU).commit is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    provenance.cache_clear()
    commit = provenance(CPU).commit
    assert len(commit) == 40 and int(commit, 16)
    (tmp_path / "code.py").write_text("2")
    provenance.cache_clear()
    assert provenance(CPU).commit == f"{commit}-dirty"


def test_another_repository_around_it_is_not_ours(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    git(tmp_path, "commit", "-qm", "one", "--allow-empty")
    monkeypatch.setattr(module, "ROOT", (tmp_path / "site-packages").resolve())
    assert provenance(CPU).commit is None


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance(CPU).commit is None


def test_it_survives_json_and_names_what_differs():
    one = provenance(CPU)
    assert one.device == "cpu" and one.versions["torch"].startswith(torch.__version__.split("+")[0])
    again = read_provenance(json.loads(json.dumps(dataclasses.asdict(one))))
    assert again == one and one.differences(again) == []
    other = Provenance("c0ffee", "NVIDIA H200", one.versions | {"torch": "2.8.0"})
    assert one.differences(other) == [
        f"commit c0ffee, here {one.commit}", "device NVIDIA H200, here cpu", f"torch 2.8.0, here {one.versions['torch']}"]


@pytest.mark.parametrize("value", [
    None, {"torch": "2.8"}, [1], "text", {"commit": None, "device": "cpu", "versions": 3}, {"commit": 1, "device": "cpu", "versions": {}},
    {"commit": None, "device": "cpu", "versions": {"torch": 2.8}},
])
def test_files_of_older_code_and_damaged_ones_have_none(value):
    assert read_provenance(value) is None
