"""What the fault battery tried and what came of it: the table that its tests print at the end."""

from dataclasses import dataclass, field


@dataclass
class Row:
    """One kind of fault."""

    tried: int = 0
    clear: int = 0
    intact: int = 0


@dataclass
class Ledger:
    """Rows by the kind of fault, in the order of their first trial."""

    rows: dict[str, Row] = field(default_factory=dict)

    def enter(self, fault: str, clear: bool, intact: bool) -> None:
        """One trial. `clear`: it ended in an error that names the cause, or in a right result. `intact`: nothing was lost or changed silently."""
        row = self.rows.setdefault(fault, Row())
        row.tried += 1
        row.clear += clear
        row.intact += intact

    def table(self) -> list[str]:
        """Lines of text: fault, tried, clear error (or right result), data intact."""
        width = max([5, *map(len, self.rows)])
        lines = [f"{'fault':<{width}}  tried  clear  intact"]
        return lines + [f"{fault:<{width}}  {row.tried:5}  {row.clear:5}  {row.intact:6}" for fault, row in self.rows.items()]
