"""How far a task is, read from what its stages print."""

import logging
import random
import subprocess
import sys

from lib.jobs.log import LogReader, Progress, begin_stage, last_words

BAR = """
import sys, time
from tqdm import tqdm
print('capture: 3/4 cameras')
for k in tqdm(range(40), initial=20, total=60, desc='meshhead', mininterval=0.0):
    pass
"""


def test_bars_and_lines_of_the_trainer_tell_the_step(tmp_path):
    log = tmp_path / "bob" / "subject.log"
    reader = LogReader(log)
    assert reader.read() == Progress()
    begin_stage(log, 1, "meshhead", ("python", "train_meshhead.py"))
    assert reader.read() == Progress(1, "meshhead")
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", BAR], stdout=file, stderr=subprocess.STDOUT, check=True)
    assert reader.read() == Progress(1, "meshhead", 60, 60)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.emit(logging.makeLogRecord({"msg": "step 200/800  loss 0.1  psnr 20.00 dB (held out)"}))
    handler.close()
    assert reader.read() == Progress(1, "meshhead", 200, 800)
    begin_stage(log, 2, "gaussianhead", ("python", "train_gaussianhead.py"))
    assert reader.read() == Progress(2, "gaussianhead")


def test_it_does_not_matter_where_reads_cut_the_text(tmp_path):
    whole = tmp_path / "whole.log"
    begin_stage(whole, 3, "evaluation", ("python", "a b.py"))
    with whole.open("a") as file:
        file.write("".join(f"\rnovel_view:  {k}%|█▏    | {k}/64 [00:01<00:02, 13.19batch/s]" for k in range(65)) + "\nwrote\n")
    data, cuts = whole.read_bytes(), random.Random(0)
    for _ in range(20):
        part = tmp_path / "part.log"
        part.write_bytes(b"")
        reader, at = LogReader(part), 0
        while at < len(data):
            step = cuts.randint(1, 200)
            with part.open("ab") as file:
                file.write(data[at:at + step])
            at += step
            progress = reader.read()
            assert progress.step <= 64
        assert progress == Progress(3, "evaluation", 64, 64)


def test_what_is_there_before_is_of_earlier_runs(tmp_path):
    log = tmp_path / "a.log"
    begin_stage(log, 1, "meshhead", ())
    assert LogReader(log).read() == Progress()


def test_last_words_are_the_error_told_or_the_last_line(tmp_path):
    log = tmp_path / "a.log"
    start = begin_stage(log, 1, "meshhead", ())
    assert last_words(log, start) == ""
    with log.open("a") as file:
        file.write("Traceback\n  File\nRuntimeError: CUDA error: unspecified launch failure\n")
    assert last_words(log, start) == "RuntimeError: CUDA error: unspecified launch failure"
    with log.open("a") as file:
        file.write("bar\rerror: the folder\n  holds nothing\n")
    assert last_words(log, start) == "the folder\n  holds nothing"
    assert last_words(log, begin_stage(log, 1, "gaussianhead", ())) == ""
