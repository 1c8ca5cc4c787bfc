"""Pieces of the report's page: escaped text, tables, numbers for people, and the style."""

from collections.abc import Sequence
from html import escape
from typing import Any

from jaxcls.report.console import printable


def text(value: Any) -> str:
    """Escaped, see `printable`."""
    return escape(printable("-" if value is None else value))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = "".join(f"<th>{text(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #23272e; --soft: #5d6470; --grid: #dcdfe3; --panel: #ffffff;
  --series0: #2166ac; --series1: #c2410c; --series2: #15803d; --series3: #7e22ce; --series4: #a16207; --series5: #64748b;
  --series6: #be185d; --series7: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ink: #e3e6ea; --soft: #9aa3af; --grid: #333a44;
  --panel: #1c2026; --series0: #6fb1f0; --series1: #fb9a63; --series2: #5fd08a; --series3: #c79bf2; --series4: #e3b341;
  --series5: #94a3b8; --series6: #f48fb8; --series7: #5cc9bd; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .6rem; }
h3, h4 { font-size: .95rem; margin: 1rem 0 .3rem; font-weight: 600; overflow-wrap: anywhere; }
.cards, .charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.card, figure { background: var(--panel); border: 1px solid var(--grid); border-radius: .5rem; padding: .8rem 1rem;
  margin: 0; min-width: 0; }
.card { border-left-width: .4rem; } .card h2 { margin: 0 0 .4rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem 1rem; margin: 0; } dt { color: var(--soft); }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure svg, figure img { width: 100%; height: auto; display: block; } figcaption { margin-bottom: .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td:first-child { min-width: 9rem; } th { color: var(--soft); font-weight: 600; }
td { font-variant-numeric: tabular-nums; overflow-wrap: break-word; max-width: 24rem; }
.bar { display: flex; height: 1.6rem; border-radius: .3rem; overflow: hidden; gap: 1px; }
.legend { list-style: none; padding: 0; margin: .4rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin-right: .4em; }
.remarks { color: var(--series1); overflow-wrap: anywhere; } pre { overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
"""
