"""Checks every jaxtyping annotation of lib, with beartype, while the tests run; and the subject that many of them share."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for what tests start: of this little, threads do nothing but wait for each other

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)  # sums in one order: runs are equal to the bit

jaxtyping.install_import_hook("lib", "beartype.beartype")  # before anything imports lib


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the whole battery of tests/faults (make faults): hundreds of kills, thousands of mutations")
    parser.addoption("--share", default="0/1", help="I/N: every N-th test, from the I-th on")


def pytest_collection_modifyitems(config, items):
    first, step = map(int, config.getoption("--share").split("/"))
    items[:] = items[first::step]


def pytest_collection_finish(session):
    from tests.render.triton_process import INTERPRETED, interpreters  # after the hook

    if not INTERPRETED and not session.config.option.collectonly:
        starting = (item for item in session.items if item.name == "test_under_the_interpreter")
        files = [str(item.path) for item in starting if not any(mark.args[0] for mark in item.iter_markers("skipif"))]
        interpreters.start(files, len(session.items))


def pytest_sessionfinish():
    from tests.render.triton_process import interpreters

    interpreters.stop()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The tiny subject and its driver (tests/tiny.py)."""
    from tests.tiny import tiny  # after the hook

    return tiny(tmp_path_factory)


@pytest.fixture(scope="session")
def subject(made):
    """The tiny subject; tests that change files take a copy (copy_subject)."""
    return made.subject
