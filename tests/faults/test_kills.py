"""kill -9 at any moment of whatever writes: nothing half made ever has the name of a result, and the same command again ends with the bytes of an
undisturbed run, without anything left over."""

import random
import time

import pytest

from tests.faults.children import Command, Victim, files
from tests.faults.workshop import EXPORTS, TRAININGS, Workshop, leftovers

# What is killed, at which moments, how often with --long, how often without.
KILLS = [
    *((name, moments, 30, 2) for name in TRAININGS for moments in ("training", "saving")),
    ("extraction", "extraction", 40, 4), ("video", "video writing", 30, 3), *((name, "export", 7, 1) for name in EXPORTS),
]
LATEST_MOMENT_S = 0.02  # after a file was opened or renamed


@pytest.mark.parametrize(("name", "moments", "many", "few"), KILLS)
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(workshop: Workshop, ledger, long, tmp_path, name, moments, many, few):
    reference, chance = workshop.reference(name), random.Random(f"{name} {moments}")
    left, runs = many if long else few, 0
    while left:
        command, runs = workshop.place(name, tmp_path / str(runs)), runs + 1
        while killed := left > 0 and kill(command, moments, chance, reference.changes):
            strange = reference.strange(files(command.place))
            ledger.enter(f"kill -9 while {moments}" + f", {name}" * (name in TRAININGS), True, strange == [])
            assert strange == []
            left -= killed
        assert Victim(command).end() == 0  # of what was through before it could be killed, once more
        content = files(command.place)
        assert reference.same(content) and leftovers(content) == []
    print(f"{name}: {many if long else few} kills in {runs} runs")


def kill(command: Command, moments: str, chance: random.Random, changes: int) -> bool:
    """Starts the command and kills it; whether that came before its end."""
    victim = Victim(command, None if moments == "training" else chance.randint(1, changes))
    if moments == "training":
        time.sleep(chance.uniform(0.2, 1.0))
    else:
        victim.wait_for_event()
        time.sleep(chance.uniform(0.0, LATEST_MOMENT_S))
    return victim.kill()
