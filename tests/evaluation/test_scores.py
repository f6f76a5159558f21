"""Means, medians and worst, and the files they are in."""

import csv
import json
import math

import pytest

from lib.errors import InputError
from lib.evaluation.scores import METRICS, PICTURES, TABLE, read_number, read_result, write_scores
from tests.evaluation.results import PROTOCOL, scores


def test_statistics_skip_pictures_to_which_a_measure_does_not_apply():
    psnr, lpips, mouth, silent = (scores().summary(name) for name in ("psnr", "lpips_vgg", "mouth_psnr", "silent"))
    assert (psnr.mean, psnr.median, psnr.worst, psnr.at.frame) == (26.0, 27.0, 20.0, "0010")
    assert (lpips.mean, lpips.worst, lpips.at.camera) == (pytest.approx(0.25), 0.40, "c2")  # an error is worst where it is largest
    assert (mouth.mean, mouth.median, mouth.worst) == (15.0, 15.0, 12.0)
    assert (silent.mean, silent.median, silent.worst, silent.at) == (None,) * 4


def test_the_worst_frames_come_first_and_only_where_a_measure_applies():
    assert scores().worst("mask_psnr", 3) == [2, 1]  # of frame 0000 the worse of its cameras
    assert scores().worst("lpips_vgg", 2) == [2, 3] and scores().worst("lpips_vgg", 1) == [2]
    assert scores().worst("mouth_psnr", 9) == [2, 1] and scores().worst("silent", 9) == []


def test_files_hold_every_number_and_no_nan(tmp_path):
    write_scores(tmp_path, [scores(), scores(split="cross")], PROTOCOL, {"evaluation": 1.5})

    def refuse(name: str):
        raise AssertionError(name)

    metrics, pictures = (json.loads((tmp_path / name).read_text(), parse_constant=refuse) for name in (METRICS, PICTURES))
    views = metrics["novel_view"]
    assert (views["psnr"], views["silent"], views["frames"], views["frames_per_second"]) == (26.0, None, 4, 12.5)
    assert views["median"]["psnr"] == 27.0 and views["worst"]["psnr"] == {"value": 20.0, "frame": "0010", "camera": "c1"}
    assert "silent" not in views["worst"] and metrics["seconds"] == {"evaluation": 1.5} and metrics["protocol"]["id"] == PROTOCOL.id
    with (tmp_path / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["split"] for row in rows} == {"novel_view", "cross"}
    for row, stored in zip(rows, pictures["novel_view"] + pictures["cross"], strict=True):
        assert {name: None if row[name] == "" else row[name] for name in stored} == {
            name: value if value is None or isinstance(value, str) else str(value) for name, value in stored.items()}
    assert not list(tmp_path.glob("*.partial"))


def test_numbers_are_rounded_to_digits_that_mean_something():
    assert read_number(0.000123456789) == 0.000123457 and read_number(28.123456789) == 28.1235
    assert read_number(math.nan) is None and read_number(math.inf) is None and read_number(None) is None


def test_a_result_is_read_back(tmp_path):
    write_scores(tmp_path, [scores()], PROTOCOL, {})
    result = read_result(tmp_path)
    assert result.protocol == PROTOCOL and result.means["novel_view"]["psnr"] == 26.0 and result.means["novel_view"]["silent"] is None
    assert read_result(tmp_path / METRICS) == result


@pytest.mark.parametrize(("content", "says"), [
    (None, "file is missing"), ("{", "not a complete JSON"), ('{"novel_view": {"psnr": 1}}', "older than protocol ids"), ("[]", "cannot be read"),
    ('{"protocol": {"id": "gha-eval-9", "new": 1}}', "gha-eval-9"), ('{"protocol": {"splits": {"a": {}}}}', "cannot be read"),
])
def test_what_is_no_result_is_refused(content, says, tmp_path):
    if content is not None:
        (tmp_path / METRICS).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        read_result(tmp_path)
    assert METRICS in str(error.value)
