"""One page of a run that needs nothing else: tables that sort and filter, figures, what was run, the records."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Table", "page"]

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --soft: #666; --line: #d9d9d9; --card: #f7f7f7; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #e8e8e8; --soft: #a0a0a0; --line: #3a3d42; --card: #1f2226; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, .soft { color: var(--soft); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { background: var(--card); } th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tr:last-child td { border-bottom: 0; }
input { font: inherit; padding: .3rem .6rem; margin: .5rem 0; width: 100%; max-width: 24rem; box-sizing: border-box;
  background: var(--card); color: inherit; border: 1px solid var(--line); border-radius: 6px; }
figure { margin: 1rem 0; } figure > div { background: #fff; border-radius: 6px; padding: .5rem; overflow-x: auto; }
svg { width: 100%; max-width: 36rem; height: auto; } figcaption { color: var(--soft); }
pre { background: var(--card); padding: .7rem; border-radius: 6px; overflow-x: auto; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => { const text = row.cells[i].textContent; const n = parseFloat(text);
    return isNaN(n) ? text : n; };
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a, i), key(b, i))).forEach(row => body.append(row));
  }));
  const filter = table.closest("section").querySelector("input");
  filter.addEventListener("input", () => { for (const row of body.rows)
    row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase()); });
}
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Table(NamedTuple):
    """A table of a page.

    Attributes:
        title: Its heading.
        rows: One mapping a row, all with the same keys.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]


def page(
    title: str,
    tables: Sequence[Table],
    figures: Mapping[str, str],
    about: Mapping[str, Any],
    downloads: Mapping[str, str],
) -> str:
    """Return a page of HTML that loads nothing from anywhere, and says so to the browser.

    Args:
        title: Its heading.
        tables: The tables, in order.
        figures: Caption -> SVG.
        about: What was run: command, options, versions; shown as JSON.
        downloads: Name of a file -> its text.

    Example:
        >>> made = page("A run", [Table("Accuracy", [{"method": "a < b", "accuracy": "0.5"}])], {}, {"seed": 0}, {})
        >>> "a &lt; b" in made, "http" in made.replace("http-equiv", "")
        (True, False)
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *map(_table, tables)]
    parts += [
        f"<figure><div>{svg}</div><figcaption>{html.escape(name)}</figcaption></figure>"
        for name, svg in figures.items()
    ]
    if about:
        shown = html.escape(json.dumps(about, indent=1, default=str))
        parts.append(f"<h2>What was run</h2><pre>{shown}</pre>")
    if downloads:
        links = "".join(f"<li>{_download(name, text)}</li>" for name, text in downloads.items())
        parts.append(f"<h2>Records</h2><ul>{links}</ul>")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    body += f"\n<script>{_SCRIPT}</script>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(table: Table) -> str:
    names = list(dict.fromkeys(name for row in table.rows for name in row))
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in names)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_text(row.get(name)))}</td>" for name in names) + "</tr>\n"
        for row in table.rows
    )
    heading = html.escape(table.title)
    return (
        f"<section><h2>{heading}</h2>"
        f'<input type="search" placeholder="Filter rows" aria-label="Filter rows of: {heading}">'
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{lines}</tbody></table></div></section>'
    )


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _download(name: str, text: str) -> str:
    coded = base64.b64encode(text.encode()).decode()
    kind = "text/csv" if name.endswith(".csv") else "application/json"
    shown = html.escape(name)
    return f'<a download="{shown}" href="data:{kind};base64,{coded}">{shown}</a>, {len(text):,} bytes'
