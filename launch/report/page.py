"""The page around the report's sections: one file, without script and without anything from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --card: #ffffff; --ink: #1d2127; --soft: #5d6570; --rule: #dfe1e4;
  --warn: #a8320a;
  --c0: #1f6fb4; --c1: #c9560c; --c2: #2a8a4a; --c3: #8a4fb0; --c4: #b8304f; --c5: #8a6d00; --c6: #0c8790;
  --c7: #6b6f76; --idle: #eceef0; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e6e8eb;
  --soft: #9aa3ae; --rule: #333a43;
  --warn: #ff9d76; --c0: #6cb2f0; --c1: #f5a05a; --c2: #6ccb8a; --c3: #c79be6; --c4: #f2879c; --c5: #dcc050;
  --c6: #58cfd6; --c7: #a9b0b8;
  --idle: #2a3038; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
  h2 { font-size: 19px; margin: 40px 0 6px; border-top: 1px solid var(--rule); padding-top: 20px; }
h3 { font-size: 15px; margin: 20px 0 4px; } p { margin: 4px 0 10px; max-width: 76ch; }
  .soft, .none { color: var(--soft); } .warn { color: var(--warn); }
.grid-of { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 14px; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 20px;
  align-items: start; }
figure { margin: 0; padding: 10px 10px 4px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; break-inside: avoid; }
figcaption { font-weight: 600; font-size: 13px; margin-bottom: 4px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg.square { max-width: 460px; margin: 0 auto; } .grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .raw { fill: none; stroke-width: 1; opacity: .3; }
  .whisker { stroke-width: 1; opacity: .45; }
.limit { stroke: var(--soft); stroke-dasharray: 5 4; fill: none; } .fill { stroke: none; }
  circle.first { fill: var(--card) !important; stroke-width: 2; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
  .c4 { stroke: var(--c4); }
.c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.c0.fill, circle.c0, i.c0 { fill: var(--c0); background: var(--c0); }
  .c1.fill, circle.c1, i.c1 { fill: var(--c1); background: var(--c1); }
.c2.fill, circle.c2, i.c2 { fill: var(--c2); background: var(--c2); }
  .c3.fill, circle.c3, i.c3 { fill: var(--c3); background: var(--c3); }
.c4.fill, circle.c4, i.c4 { fill: var(--c4); background: var(--c4); }
  .c5.fill, circle.c5, i.c5 { fill: var(--c5); background: var(--c5); }
.c6.fill, circle.c6, i.c6 { fill: var(--c6); background: var(--c6); }
  .c7.fill, circle.c7, i.c7 { fill: var(--c7); background: var(--c7); }
.unknown { fill: none; stroke: var(--rule); stroke-dasharray: 3 3; } .stack { display: grid; gap: 14px; }
.idle { fill: var(--idle); } i.idle { background: var(--idle); }
  .key { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 6px 0 12px; font-size: 13px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
  th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; } td { overflow-wrap: break-word; max-width: 52ch; } .wide { margin: 10px 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; margin: 4px 0; }
details { margin: 8px 0; } summary { cursor: pointer; }
@media (max-width: 600px) { body { padding: 14px 12px 40px; } th, td { padding-right: 10px; }
  svg text { font-size: 12px; } }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 11pt; }
  .grid-of { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; } .wide { overflow: visible; } details:not([open]) { display: none; } }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """title is escaped; the sections are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def section(title: str, intro: str, *parts: str) -> str:
    """intro is text, the parts are HTML."""
    said = f'<p class="soft">{escape(intro)}</p>' if intro else ""
    return f"<section><h2>{escape(title)}</h2>{said}{''.join(parts)}</section>"


def grid(figures: Sequence[str]) -> str:
    return f'<div class="grid-of">{"".join(figures)}</div>'


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Names and the class of their colour."""
    return (
        '<div class="key">'
        + "".join(f'<span><i class="{colour}"></i>{escape(name)}</span>' for name, colour in entries)
        + "</div>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Everything is escaped; numbers stand to the right."""
    if not rows:
        return '<p class="none">nothing to show</p>'
    right = [all(_is_number(row[place]) for row in rows) for place in range(len(head))]
    top = "".join(f"<th{_side(right[place])}>{escape(name)}</th>" for place, name in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_side(right[place])}>{escape(_text(cell))}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) or re.fullmatch(r"-|[-+]?[\d.]+[%°]?", str(cell)) is not None


def _side(right: bool) -> str:
    return ' class="n"' if right else ""


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
