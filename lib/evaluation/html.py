"""Pages that need nothing but themselves: no script, no font, no address; pictures are inside, curves are SVG."""

import base64
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float
from torch import Tensor

from lib.datasets.images import to_uint8

JPEG_QUALITY = 82
COLORS = ("#0b6bcb", "#d1495b", "#2e8b57", "#b8860b", "#7b4fb5", "#008b8b", "#c2571a", "#5b6770")
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 420, 170, 44, 8, 22, 8  # of a chart, in its own units
LETTER = 6  # width of one in a chart
MOST_LINES = len(COLORS)
STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#667;--line:#d9dee4;--back:#fff;--card:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa4b0;--line:#333b45;--back:#14171b;--card:#1c2128}}
body{margin:0 auto;padding:16px;max-width:960px;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.25em;margin:1.6em 0 .4em;border-bottom:1px solid var(--line)}h3{font-size:1em;margin:1.2em 0 .3em}
p,figcaption,.soft{color:var(--soft)}figure{margin:0 0 16px}img,svg{display:block;width:100%;height:auto;border-radius:4px}svg{max-width:640px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9em;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th.text,td.text{text-align:left}
thead th{color:var(--soft);font-weight:600}tbody tr:nth-child(even){background:var(--card)}
@media(max-width:520px){th,td{padding:3px 5px;font-size:.85em}}
svg text{font:10.5px system-ui,sans-serif;fill:var(--soft)}.key{display:inline-block;margin:0 12px 4px 0;white-space:nowrap;font-size:.85em}
.key i{display:inline-block;width:14px;height:3px;margin-right:5px;vertical-align:middle}details summary{cursor:pointer;color:var(--soft)}
"""


def page(title: str, note: str, *parts: str) -> str:
    """A whole document."""
    body = "\n".join((f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(note)}</p>", *parts))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Cells are plain text; the first columns are flush left, numbers right. It scrolls by itself where the screen is narrow."""
    def line(cells: Sequence[str], tag: str) -> str:
        classes = [' class="text"' if column < text_columns else "" for column in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def picture(image: Float[Tensor, "3 H W"], caption: str) -> str:
    """A picture in [0,1] inside the page, as a JPEG."""
    pixels = np.ascontiguousarray(to_uint8(image).cpu().permute(1, 2, 0).numpy()[..., ::-1])
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    text = html.escape(caption)
    return (f'<figure><img alt="{text}" src="data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}">'
            f"<figcaption>{text}</figcaption></figure>")


def folded(title: str, *parts: str) -> str:
    """Shown when it is asked for."""
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


@dataclass(frozen=True)
class Line:
    """A curve: one value per frame, NaN where it has none."""

    name: str
    values: tuple[float, ...]


def chart(title: str, lines: Sequence[Line], marks: Sequence[tuple[int, str]] = ()) -> str:
    """Curves over the number of a frame; `marks` are where something begins, with its name. Nothing where no value is known."""
    known = [value for line in lines for value in line.values if math.isfinite(value)]
    if not known:
        return ""
    count = max(len(line.values) for line in lines)
    low, high = _limits(min(known), max(known))

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / max(1, count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for value in np.linspace(low, high, 4):
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
                     f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    ends = [*(x(index) for index, _ in marks[1:]), WIDTH]
    for (index, name), end in zip(marks, ends, strict=False):
        shown = name[:max(0, int((end - x(index) - LETTER) / LETTER))]  # what fits before the next one
        parts.append(f'<path d="M{x(index):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="var(--soft)" stroke-dasharray="2 3"/>'
                     f'<text x="{x(index) + 2:.1f}" y="{HEIGHT - 8}">{html.escape(shown)}<title>{html.escape(name)}</title></text>')
    for line, color in zip(lines, COLORS, strict=False):
        parts.append(f'<path fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round" d="{_path(line.values, x, y)}"/>')
        parts += [f'<circle cx="{x(index):.1f}" cy="{y(value):.1f}" r="2" fill="{color}"/>' for index, value in _alone(line.values)]
    keys = "".join(f'<span class="key"><i style="background:{color}"></i>{html.escape(line.name)}</span>'
                   for line, color in zip(lines, COLORS, strict=False))
    return f"<h3>{html.escape(title)}</h3>{''.join(parts)}</svg>{keys}"


def _limits(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _path(values: Sequence[float], x: Callable[[int], float], y: Callable[[float], float]) -> str:
    """Lines between neighbours that are both known."""
    pieces, pen = [], "M"
    for index, value in enumerate(values):
        if math.isfinite(value):
            pieces.append(f"{pen}{x(index):.1f} {y(value):.1f}")
        pen = "L" if math.isfinite(value) else "M"
    return "".join(pieces)


def _alone(values: Sequence[float]) -> list[tuple[int, float]]:
    """Values between unknown ones, of which a line shows nothing."""
    padded = [math.nan, *values, math.nan]
    return [(index, value) for index, value in enumerate(values)
            if math.isfinite(value) and not math.isfinite(padded[index]) and not math.isfinite(padded[index + 2])]
