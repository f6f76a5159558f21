"""A disk that is full, read-only or somebody else's ends every writer with one message that names it; nothing that was there is lost or half
replaced, and the same command goes on as soon as it can."""

import errno
import os
import random

import pytest

from tests.faults import disks
from tests.faults.children import apart, suffer
from tests.faults.disks import Denied, Failing, FullDisk, ReadOnly
from tests.faults.workshop import EXPORTS, TRAININGS, Workshop, leftovers

WRITERS = (*TRAININGS, "video", *EXPORTS, "evaluation", "extraction", "one camera", "mattes", "landmarks", "3DMM", "check", "YAML files",
           "export GaussianAvatars", "submission", "demo subject", "demo capture")
FEW = ("meshhead", "video", "export obj", "export published", "extraction", "mattes", "landmarks", "demo subject")
PAGE = 4096
MIDWAY = {errno.ENOSPC: "disk full midway", errno.EROFS: "disk read-only midway", errno.EACCES: "permission lost midway",
          errno.EIO: "disk broken midway"}


@pytest.fixture(scope="session", autouse=True)
def _namespaces(workshop):
    disks.look_for_namespaces()
    print("namespaces" if disks.has_namespaces() else "no namespaces here: disks are full by RLIMIT_FSIZE, read-only by refused calls")


def endure(possible, command, fault):
    disks.know(possible)
    return suffer(command, fault)


def trial(workshop, ledger, name, folder, fault, kind, words, midway=False):
    reference, command = workshop.reference(name), workshop.place(name, folder)
    first, found, again, then = apart(endure, disks.has_namespaces(), command, fault)
    print(f"{kind}, {name}: {first.code} {first.said[-300:]}")
    # When the last change of all is refused, the removal of a lock, the result is there already.
    clear = first.is_clear(*words) or (midway and first.code == 0 and reference.same(found))
    # A disk that refuses everything lets nobody tidy up.
    intact = reference.strange(found) == [] and (midway or leftovers(found) == [])
    mended = again.code == 0 and reference.same(then) and leftovers(then) == []
    ledger.enter(kind, clear and mended, intact)
    assert clear, first.said
    assert intact, (reference.strange(found), leftovers(found))
    assert mended, (again.said, reference.strange(then), leftovers(then))


@pytest.mark.cases(WRITERS, FEW)
def test_a_full_disk(workshop: Workshop, ledger, long, tmp_path, name):
    reference, chance = workshop.reference(name), random.Random(name)
    for number in range(4 if long else 1):
        share = chance.uniform(0.0, 0.8)
        fault = FullDisk(PAGE * int(share * reference.size / PAGE), int(share * reference.largest))
        trial(workshop, ledger, name, tmp_path / str(number), fault, "disk full", disks.FULL)


@pytest.mark.cases(WRITERS, ("gaussianhead", "export bundle", "export gltf", "extraction"))
def test_a_disk_that_fails_midway(workshop: Workshop, ledger, long, tmp_path, name):
    changes, chance = workshop.reference(name).changes, random.Random(name)
    for number in range(4 if long else 1):
        code = chance.choice(list(MIDWAY))
        fault = Failing(chance.randint(1, changes), code)
        trial(workshop, ledger, name, tmp_path / str(number), fault, MIDWAY[code], (os.strerror(code),), midway=True)


@pytest.mark.cases(WRITERS, ("meshhead", "export obj", "mattes"))
def test_a_read_only_disk(workshop: Workshop, ledger, tmp_path, name):
    trial(workshop, ledger, name, tmp_path / "0", ReadOnly(), "disk read-only", ("Read-only file system",))


@pytest.mark.cases(WRITERS, ("video", "export obj", "extraction"))
def test_folders_that_may_not_be_written(workshop: Workshop, ledger, tmp_path, name):
    trial(workshop, ledger, name, tmp_path / "0", Denied(), "permission denied", ("Permission denied",))
