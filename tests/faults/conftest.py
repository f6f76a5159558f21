"""How large the battery is (--long), and the table at its end."""

import pytest

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


def pytest_terminal_summary(terminalreporter):
    if LEDGER.rows:
        terminalreporter.section("faults")
        for line in LEDGER.table():
            terminalreporter.write_line(line)
