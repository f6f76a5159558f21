"""Runs side by side: what is best, and which are not compared."""

import csv
import dataclasses

import pytest

from lib.errors import InputError
from lib.evaluation.comparison import ComparisonRequest, compare, comparison_request, subjects_summary
from lib.evaluation.protocol import Backbone, Protocol
from lib.evaluation.scores import write_scores
from tests.evaluation.results import PROTOCOL, VIEWS, scores


@pytest.fixture
def runs(tmp_path):
    """Two results of one protocol; b is 1 dB better."""
    for name, shift in (("a", 0.0), ("b", 1.0)):
        write_scores(tmp_path / name, [scores(shift)], PROTOCOL, {})
    return tmp_path / "a", tmp_path / "b"


def changed(**changes) -> Protocol:
    return Protocol.model_validate(PROTOCOL.model_dump() | changes)


def refused(runs, protocol: Protocol) -> str:
    write_scores(runs[1], [scores(split=split) for split in protocol.splits], protocol, {})
    with pytest.raises(InputError) as error:
        compare(ComparisonRequest(runs, None))
    assert all(str(folder) in str(error.value) for folder in runs)
    return str(error.value)


def test_yardsticks_have_no_star(runs):
    for folder, level in zip(runs, (10.0, 11.0), strict=True):
        one = scores()
        columns = tuple((*row[:1], level, *row[2:]) for row in one.values)
        write_scores(folder, [dataclasses.replace(one, names=(one.names[0], "neutral_mouth_psnr", *one.names[2:]), values=columns)], PROTOCOL, {})
    line = next(line for line in compare(ComparisonRequest(runs, None)).splitlines() if "neutral_mouth_psnr" in line)
    assert "10" in line and "11" in line and "*" not in line


def test_the_best_of_a_row_has_a_star(runs):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in compare(ComparisonRequest(runs, None)).splitlines() if line]
    table = {tuple(line[:2]): line[2:] for line in lines if len(line) == 4}
    assert table["split", "measure"] == ["a", "b"] and table["novel_view", "psnr"] == ["26", "27*"]
    assert table["novel_view", "lpips_vgg"] == ["0.25", "0.25"]  # equal: none is best
    assert ("novel_view", "silent") not in table and ("novel_view", "frames") not in table


@pytest.mark.parametrize("suffix", [".md", ".csv", ".html"])
def test_the_table_is_written_too(runs, tmp_path, suffix):
    output = tmp_path / f"table{suffix}"
    assert str(output) in compare(ComparisonRequest(runs, output))
    text = output.read_text()
    assert PROTOCOL.id in text and "psnr" in text and "27" in text
    if suffix == ".csv":
        rows = list(csv.DictReader(output.open()))
        assert {row["measure"]: row["b"] for row in rows}["psnr"] == "27"


@pytest.mark.parametrize(("changes", "says"), [
    ({"id": "gha-eval-4"}, "protocol gha-eval-3 and gha-eval-4"), ({"resolution": 128}, "64 and 128 pixels"),
    ({"splits": {"novel_view": VIEWS, "cross": VIEWS}}, "splits novel_view and novel_view, cross"),
    ({"splits": {"novel_view": VIEWS.model_copy(update={"cameras": ("c1", "c3")})}}, "novel_view: cameras c1, c2 and c1, c3"),
    ({"splits": {"novel_view": VIEWS.model_copy(update={"sequences": ()})}}, "novel_view: sequences EXP-2-eyes and none"),
    ({"splits": {"novel_view": VIEWS.model_copy(update={"digest": "bb"})}}, "novel_view: pictures with other parameters"),
    ({"lpips": {"vgg": Backbone(features_sha256="other", heads_sha256="h")}}, r"LPIPS (vgg): other weights"),
])
def test_other_protocols_and_pictures_are_refused_by_name(runs, changes, says):
    assert says in refused(runs, changed(**changes))


def test_weights_that_the_first_run_has_not_are_compared_too(runs, tmp_path):
    write_scores(runs[0], [scores()], changed(lpips={}), {})
    write_scores(tmp_path / "c", [scores()], changed(lpips={"vgg": Backbone(features_sha256="other", heads_sha256="h")}), {})
    with pytest.raises(InputError, match=r"LPIPS \(vgg\): other weights"):
        compare(ComparisonRequest((*runs, tmp_path / "c"), None))


def test_cameras_may_be_listed_in_any_order(runs):
    write_scores(runs[1], [scores()], changed(splits={"novel_view": VIEWS.model_copy(update={"cameras": ("c2", "c1")})}), {})
    assert "psnr" in compare(ComparisonRequest(runs, None))


def test_a_measure_that_only_one_has_stays(runs):
    write_scores(runs[1], [scores()], changed(lpips={}, conventions=("hg_masked",)), {})
    assert "lpips_vgg" in compare(ComparisonRequest(runs, None))


def test_names_of_runs_are_as_long_as_they_must_be(tmp_path):
    folders = [tmp_path / name for name in ("one/demo", "two/demo")]
    for folder in folders:
        write_scores(folder, [scores()], PROTOCOL, {})
    assert "| one/demo | two/demo |" in compare(ComparisonRequest(tuple(folders), None))


def test_one_run_or_another_type_of_file_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="two different"):
        compare(ComparisonRequest((runs[0], runs[0]), None))
    with pytest.raises(InputError, match=r"\.md, \.csv, \.html"):
        compare(ComparisonRequest(runs, tmp_path / "table.xlsx"))


def test_the_command_line(tmp_path):
    assert comparison_request(["--config", "a.yaml", "recorder.name=--compare"]) is None
    request = comparison_request(["--compare", "a", "b", "--output", "t.md"])
    assert [str(folder) for folder in request.folders] == ["a", "b"] and request.output.name == "t.md"


def across(tmp_path) -> tuple:
    """Two subjects, whose pictures differ and of which one has a split more."""
    other = changed(splits={"novel_view": VIEWS.model_copy(update={"digest": "bb"}), "cross": VIEWS})
    driven = dataclasses.replace(scores(3.0, "cross"), names=("jitter", "change", "clipped", "area_jitter", "silhouette_area"))
    write_scores(tmp_path / "bob", [scores(1.0), driven], other, {})
    return tmp_path / "a", tmp_path / "bob"


def test_subjects_have_a_mean_and_no_best_one(runs, tmp_path):
    request = comparison_request(["--compare", *map(str, across(tmp_path)), "--across-subjects", "--output", str(tmp_path / "all.csv")])
    assert "*" not in compare(request)
    rows = {(row["split"], row["measure"]): row for row in csv.DictReader((tmp_path / "all.csv").open())}
    assert [rows["novel_view", "psnr"][column] for column in ("a", "bob", "mean")] == ["26", "27", "26.5"]
    assert [rows["cross", "jitter"][column] for column in ("a", "bob", "mean")] == ["–", "29", "29"]


def test_a_terminal_sees_a_row_per_subject(runs, tmp_path):
    shown = [line.split() for line in subjects_summary(across(tmp_path)).splitlines()]
    assert shown[:4] == [["novel_view", "psnr", "mask_psnr", "lpips_vgg", "mouth_psnr"], ["a", "26", "24.5", "0.25", "15"],
                         ["bob", "27", "24.5", "0.25", "15"], ["mean", "26.5", "24.5", "0.25", "15"]]
    assert shown[5:8] == [["cross", "jitter"], ["a", "–"], ["bob", "29"]]


def test_subjects_that_were_not_measured_alike_are_refused(runs):
    write_scores(runs[1], [scores()], changed(resolution=128), {})
    with pytest.raises(InputError, match="64 and 128 pixels"):
        compare(ComparisonRequest(runs, None, across_subjects=True))
