"""Pages that need nothing from outside, and pictures on them."""

import base64
import math
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

from lib.evaluation.html import Line, chart, page, picture, table
from lib.evaluation.pictures import LARGEST_ERROR, STRIP, TILE, ShownPicture, error_map, worst_page
from lib.evaluation.report import SplitPages, summary_table, write_report
from lib.evaluation.scores import PictureName, SplitScores
from tests.evaluation.results import PROTOCOL, scores

VOID = {"meta", "img", "path", "circle"}


class Reader(HTMLParser):
    """Balanced tags, and whatever an element would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen, self.fetched, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def report(tmp_path) -> str:
    image = torch.rand(3, 20, 30)
    write_report(tmp_path / "report.html", "A <run>", PROTOCOL, [SplitPages(scores(), (("worst & least", image), ("sheet", image)))])
    return (tmp_path / "report.html").read_text()


def test_a_report_fetches_nothing_and_shows_what_was_measured(report):
    reader = Reader(report)
    assert len(reader.fetched) == 2 and all(source.startswith("data:image/jpeg;base64,") for source in reader.fetched)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.seen} and "url(" not in report and "@import" not in report
    assert not re.search(r"https?://", report)
    assert ("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}) in reader.seen
    text = " ".join(reader.texts)
    assert "A <run>" in text and "worst & least" in text and PROTOCOL.id in text and "0010" in text and "26" in text


def test_pictures_in_a_page_are_the_pictures():
    image = torch.zeros(3, 16, 24)
    image[0] = 1.0
    (source,) = Reader(page("t", "n", picture(image, "c"))).fetched
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (16, 24, 3) and pixels[8, 12, 2] > 245 and pixels[8, 12, 0] < 12


def test_a_curve_passes_through_its_values_and_is_broken_where_there_are_none():
    shown = chart("psnr", [Line("c1", (0.0, 1.0, math.nan, 1.0, 2.0)), Line("c2", (math.nan, 0.0, math.nan, math.nan, 2.0))], [(3, "B <2>")])
    reader = Reader(shown)
    first, second = [attributes["d"] for tag, attributes in reader.seen if tag == "path" and attributes.get("fill") == "none"]
    points = [[tuple(map(float, point.split())) for point in part.split("L")] for part in first.split("M")[1:]]
    assert [len(part) for part in points] == [2, 2]
    (x0, low), (x1, middle), (_, same), (x4, high) = points[0] + points[1]
    assert same == middle and low > middle > high and middle - high == pytest.approx(low - middle, abs=0.2)
    assert x4 - x0 == pytest.approx(4 * (x1 - x0), abs=0.3) and "nan" not in shown
    assert len(second.split("M")) == 3 and sum(tag == "circle" for tag, _ in reader.seen) == 2  # lonely values are dots
    assert "B <2>" in reader.texts
    assert chart("psnr", [Line("c", (math.nan, math.nan))]) == "" and chart("psnr", [Line("c", (1.0, 1.0))]) and chart("x", [Line("c", (0.0,))])


def test_many_cameras_become_three_lines(tmp_path):
    names = [PictureName(str(frame), f"c{camera:02d}", "") for camera in range(20) for frame in range(5)]
    many = SplitScores("novel_sequence", tuple(names), ("mask_psnr",), tuple((float(20 + int(one.camera[1:]) + int(one.frame)),) for one in names))
    write_report(tmp_path / "r.html", "t", PROTOCOL, [SplitPages(many, ())])
    text = (tmp_path / "r.html").read_text()
    assert "lowest camera" in text and "median camera" in text and "c07" not in text


def test_text_in_tables_is_text():
    reader = Reader(table(["<b>", "x"], [["<script>", "&"]]))
    assert reader.texts == ["<b>", "x", "<script>", "&"]


def test_the_terminal_sees_every_measure_that_applies():
    shown = summary_table(scores()).splitlines()
    assert len(shown) == 2 + 4 and shown[2].split()[:4] == ["psnr", "26", "27", "20"]


def test_errors_are_shown_on_one_scale():
    target = torch.zeros(3, 4, 5)
    target[:, 0, 1], target[:, 0, 2] = LARGEST_ERROR / 2, LARGEST_ERROR * 3
    shown = error_map(torch.zeros(3, 4, 5), target)
    assert shown.shape == (3, 4, 5) and float(shown[:, 1:].max()) < 0.05 and float(shown[:, 0, 2].min()) == 1.0
    assert 0.0 < float(shown[:, 0, 1].mean()) < 1.0
    assert float(error_map(torch.full((3, 4, 5), torch.nan), target).min()) == 1.0


def test_the_worst_page_has_target_output_and_error_in_a_row():
    red, blue = torch.zeros(3, 2 * TILE, 2 * TILE), torch.zeros(3, 2 * TILE, 2 * TILE)
    red[0], blue[2] = 1.0, 1.0
    shown = worst_page([ShownPicture(red, blue, "frame 0000, a caption that is far too long for its row " * 4)] * 2, ("target", "avatar", "error"))
    assert shown.shape == (3, STRIP + 2 * (TILE + STRIP), 3 * TILE)
    row = shown[:, STRIP + TILE // 2]
    assert row[:, 10].tolist() == [1.0, 0.0, 0.0] and row[:, TILE + 10].tolist() == [0.0, 0.0, 1.0] and float(row[:, 2 * TILE + 10].min()) > 0.99
    strip = shown[:, STRIP + TILE:2 * STRIP + TILE]
    assert float(strip.min()) < 0.5 and float(strip[..., -3:].min()) > 0.9  # written, within the row
