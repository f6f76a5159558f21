"""How large the battery is (--long), and the table at its end."""

import pytest
from hypothesis import HealthCheck, settings

from tests.faults.ledger import Ledger

LEDGER = Ledger()


@pytest.fixture
def ledger() -> Ledger:
    """Where every trial of a fault is entered."""
    return LEDGER


@pytest.fixture(scope="session")
def long(request) -> bool:
    """Whether the whole battery was asked for."""
    return request.config.getoption("--long")


def pytest_configure(config):
    """How many examples a property is tried on: the same ones every time."""
    settings.register_profile("faults", derandomize=True, deadline=None, max_examples=300 if config.getoption("--long") else 30,
                              suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def pytest_terminal_summary(terminalreporter):
    if LEDGER.rows:
        terminalreporter.section("faults")
        for line in LEDGER.table():
            terminalreporter.write_line(line)
