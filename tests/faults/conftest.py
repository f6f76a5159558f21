"""How large the battery is (--long), and the table at its end."""

import pytest
from hypothesis import HealthCheck, settings

from tests.faults.children import start_server
from tests.faults.ledger import Ledger
from tests.faults.workshop import Workshop
from tests.tiny_capture import tiny_raw

LEDGER = Ledger()


def pytest_configure(config):
    """The marker of cases, and how many examples a property is tried on: the same ones every time."""
    config.addinivalue_line("markers", "cases(all, few): values of `name` with --long, and without")
    settings.register_profile("faults", derandomize=True, deadline=None, max_examples=300 if config.getoption("--long") else 30,
                              suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is not None:
        metafunc.parametrize("name", marker.args[0 if metafunc.config.getoption("--long") else 1], ids=str)


@pytest.fixture
def ledger() -> Ledger:
    """Where every trial of a fault is entered."""
    return LEDGER


@pytest.fixture(scope="session")
def long(request) -> bool:
    """Whether the whole battery was asked for."""
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def workshop(made, tmp_path_factory) -> Workshop:
    """The commands that faults meet."""
    start_server()
    return Workshop(tmp_path_factory.mktemp("workshop"), made, tiny_raw(tmp_path_factory))


def pytest_terminal_summary(terminalreporter):
    if LEDGER.rows:
        terminalreporter.section("faults")
        for line in LEDGER.table():
            terminalreporter.write_line(line)
