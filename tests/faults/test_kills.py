"""kill -9 at any moment of whatever writes: nothing half made ever has the name of a result, and the same command again ends with the bytes of an
undisturbed run, without anything left over."""

import json
import os
import random
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.files import replace_folder, write_whole
from tests.faults.children import Command, Victim, apart, count_changes, files, on_changes
from tests.faults.workshop import EXPORTS, STEPS, TRAININGS, Workshop, leftovers

# What is killed, at which moments, how often with --long, how often without.
KILLS = [
    *((name, moments, 30, 2) for name in TRAININGS for moments in ("training", "saving")),
    ("extraction", "extraction", 40, 4), ("video", "video writing", 30, 3), *((name, "export", 7, 1) for name in EXPORTS),
    ("one camera", "preparing", 10, 1), *((name, "preparing", 10, 0) for name in ("demo capture", "export GaussianAvatars", "submission", "check")),
]
HALVES = 0.3  # of the kills leave half a file, surely
LATEST_MOMENT_S = 0.02  # after a file was opened or renamed
A_STEP_S = 0.2  # more or less: between two saves, where a training is meant to die


@pytest.mark.cases(KILLS, [row for row in KILLS if row[-1]])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(workshop: Workshop, ledger, long, tmp_path, name):
    name, moments, many, few = name
    reference, chance = workshop.reference(name), random.Random(f"{name} {moments}")
    left, runs, late = many if long else few, 0, 0
    while left:
        command, runs = workshop.place(name, tmp_path / str(runs)), runs + 1
        while killed := left > 0 and kill(command, moments, chance, reference.changes, through(name)):
            strange = reference.strange(files(command.place))
            ledger.enter(f"kill -9 while {moments}" + f", {name}" * (name in TRAININGS), True, strange == [])
            assert strange == []
            left -= killed
            late += (command.place / "checkpoints" / "tiny" / f"{name}_latest").exists()
        assert Victim(command).end() in through(name)  # of what was through before it could be killed, once more
        content = files(command.place)
        assert reference.same(content) and leftovers(content) == []
    print(f"{name}: {many if long else few} kills in {runs} runs" + f", {late} where there was a checkpoint" * (name in TRAININGS))
    assert late > 0 or name not in TRAININGS


def through(name: str) -> tuple[int, ...]:
    """Exit codes of a command that was through before: a whole export for other code is not written over."""
    return (0, 2) if name == "export GaussianAvatars" else (0,)


def kill(command: Command, moments: str, chance: random.Random, changes: int, ended: tuple[int, ...]) -> bool:
    """Starts the command and kills it; whether that came before its end."""
    half = moments != "training" and chance.random() < HALVES
    victim = Victim(command, chance.randint(1, changes), "write half" if half else "go on")
    victim.wait_for_event()
    time.sleep(chance.uniform(0.0, LATEST_MOMENT_S) + half * LATEST_MOMENT_S + (moments == "training") * chance.uniform(0.0, A_STEP_S))
    return victim.kill(ended)


@pytest.mark.cases(TRAININGS, TRAININGS[:1])
def test_killed_between_the_last_changes_of_a_training(workshop: Workshop, ledger, long, tmp_path, name):
    """What goes with the last checkpoint (seconds, older checkpoints) is made up for by a run that is finished already."""
    def fewer(number: int) -> Command:
        command = workshop.place(name, tmp_path / str(number))
        return Command(command.module, (*command.words, "recorder.keep_last=2"), command.place)

    whole, (_, changes) = workshop.reference(name), apart(count_changes, fewer(-1))
    for back in range(12) if long else (3, 5):
        command = fewer(back)
        victim = Victim(command, changes - back, "stop")
        assert victim.wait_for_event() and victim.kill()
        assert Victim(command).end() == 0
        content = files(command.place)
        steps = [file for file in content if "_step_" in file]
        right = whole.strange(content) == [f"checkpoints/tiny/{name}_config.yaml"] and leftovers(content) == []
        right = right and steps == [f"checkpoints/tiny/{name}_step_{STEPS - 1:07d}", f"checkpoints/tiny/{name}_step_{STEPS:07d}"]
        right = right and json.loads(content["results/tiny/seconds.json"])[name] > 0
        ledger.enter(f"kill -9 while saving, {name}", True, right)
        assert right, (back, steps, leftovers(content))


@pytest.mark.parametrize(("name", "begun"), [("video", "frames/00099.png.partial"), ("video", "frames/00099.jpg.partial"),
                                             ("export obj", "export/sequence/00099.obj.partial")])
def test_what_was_begun_of_a_longer_sequence_goes(workshop: Workshop, tmp_path, name, begun):
    command = workshop.place(name, tmp_path / "0")
    path = command.place / "results" / "tiny" / begun
    path.parent.mkdir(parents=True)
    path.write_text("half")
    assert Victim(command).end() == 0
    assert leftovers(files(command.place)) == []


# The file whose presence says that all is of one run.
LAST = {"evaluation": "metrics.json", "video": "reenactment.json", "export obj": "export/obj.json"}


@pytest.mark.cases(list(LAST), ["video", "export obj"])
def test_killed_over_an_older_result_nothing_says_that_both_are_one(workshop: Workshop, ledger, long, tmp_path, name):
    reference, chance = workshop.reference(name), random.Random(name)
    for number in range(8 if long else 2):
        command = workshop.place(name, tmp_path / str(number))
        given, results_of = set(files(command.place)), files(workshop.root / f"reference {name}")
        for file in results_of.keys() - given:
            path = command.place / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("old")
        victim = Victim(command, chance.randint(2, reference.changes), "stop")
        victim.wait_for_event()
        victim.kill()
        content = {file: data for file, data in files(command.place).items() if file not in given and not file.endswith((".lock", ".partial"))}
        last = content.get(f"results/tiny/{LAST[name]}")
        right = last is None or len({data == b"old" for file, data in content.items() if not file.endswith("seconds.json")}) == 1
        ledger.enter("kill -9 over an older result", True, right)
        assert right


def test_killed_while_replacing_mattes_both_sizes_are_of_one_time(workshop: Workshop, ledger, long, tmp_path):
    reference, chance = workshop.reference("mattes"), random.Random(0)
    made = files(workshop.root / "reference mattes")
    for number in range(10 if long else 2):
        command = workshop.place("mattes", tmp_path / str(number))
        masks = [file for file in made if "/mask_" in file]
        for file in masks:
            (command.place / file).write_bytes(blank(made[file]))
        victim = Victim(Command(command.module, (*command.words, "--overwrite"), command.place), chance.randint(3, reference.changes - 3), "stop")
        assert victim.wait_for_event() and victim.kill()
        assert Victim(command).end() == 0
        content = files(command.place)
        new = {file: content[file] == made[file] for file in masks}
        right = all(new[file] == new[file.replace("mask_", "mask_lowres_")] for file in masks if "lowres" not in file)
        ledger.enter("kill -9 over an older result", True, right)
        assert right and len(set(new.values())) == 2


def blank(picture: bytes) -> bytes:
    """An empty matte of the same size."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", np.zeros_like(pixels))[1].tobytes()


def replace_and_die(new: Path, place: Path, number: int) -> str:
    """Dies at its `number`-th change."""
    left = [number]

    def die() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    on_changes(place.parent, die)
    replace_folder(new, place)
    return "through"


def test_a_folder_is_never_replaced_by_halves(workshop: Workshop, tmp_path):
    whole = {generation: {f"{number}.txt": generation.encode() for number in range(3)} for generation in ("old", "new")}
    died = 0
    for number in range(1, 20):
        root = tmp_path / str(number)
        for folder, generation in (("subject", "old"), ("subject.partial", "new")):
            for file, data in whole[generation].items():
                write_whole(root / folder / file, data)
        try:
            apart(replace_and_die, root / "subject.partial", root / "subject", number)
            break
        except EOFError:
            died += 1
        there = files(root / "subject")
        assert there in ({}, *whole.values())
        if not there:  # between two names: both are there
            assert files(root / "subject.old") == whole["old"] and files(root / "subject.partial") == whole["new"]
    assert died >= 4 and files(root) == {f"subject/{file}": data for file, data in whole["new"].items()}


@pytest.mark.cases(["3DMM"], [])
def test_killed_while_replacing_a_fit_a_mixture_is_told(workshop: Workshop, ledger, tmp_path, name):
    reference, chance = workshop.reference(name), random.Random(0)
    made = files(workshop.root / "reference 3DMM" / "subject" / "params")
    mixtures = 0
    for number in range(8):
        command = workshop.place(name, tmp_path / str(number))
        folder = CaptureFolder(command.place / "subject")
        old = {file: b"old" for file in made if file != "fit.json"}
        for file, data in old.items():
            write_whole(folder.root / "params" / file, data)
        # The last changes are one for each of these files, then nearly as many of the reports.
        victim = Victim(command, reference.changes - chance.randint(5 * len(old) // 4, 7 * len(old) // 4), "stop")
        assert victim.wait_for_event() and victim.kill()
        there = {file: data for file, data in files(folder.root / "params").items() if file in old}
        try:
            folder.require_whole_fit()
            told = False
        except InputError:
            told = True
        mixtures += told
        right = told or there in (old, {file: made[file] for file in old})
        ledger.enter("kill -9 over an older result", True, right)
        assert right
        assert Victim(command).end() == 0
        folder.require_whole_fit()
        assert reference.same(files(command.place)) and leftovers(files(command.place)) == []
    assert mixtures > 0
