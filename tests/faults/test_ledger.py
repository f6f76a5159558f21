"""The table counts what it is given."""

from tests.faults.ledger import Ledger


def test_the_table_has_a_line_for_each_fault():
    ledger = Ledger()
    ledger.enter("kill -9 while saving", True, True)
    ledger.enter("kill -9 while saving", True, False)
    ledger.enter("disk full", False, True)
    lines = [line.split() for line in ledger.table()]
    assert lines[1][-3:] == ["2", "2", "1"] and lines[2][-3:] == ["1", "0", "1"]
