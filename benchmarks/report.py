"""One HTML file from the documents of a folder: tables, plots, how it was measured and on what. Nothing is fetched.

python -m spotrun.benchmarks.report FOLDER [--out report.html]
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spotrun.benchmarks.compare import NotComparable, load
from spotrun.benchmarks.measurement import cells, featured, figures
from spotrun.benchmarks.plots import svg

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left; white-space: nowrap; }
img { max-width: 100%; } code, td { font-variant-numeric: tabular-nums; } .note { opacity: .7; font-size: 13px; }
"""


def html(documents: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(_section(document) for document in documents)
    index = " · ".join(f'<a href="#{escape(d["benchmark"])}">{escape(_title(d))}</a>' for d in documents)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>spotrun: benchmarks</title><style>{STYLE}</style>'
        f"<h1>spotrun: benchmarks</h1><p>{index}</p><p>Figures are medians (first to third quartile). ∞: not within "
        "its limit. Compare the rows of one table: they took turns on one machine.</p>"
        f"{body}</html>"
    )


def _section(document: Mapping[str, Any]) -> str:
    names = featured(document)
    image = base64.b64encode(svg(document)).decode()
    every = list(dict.fromkeys(name for row in document["results"] for name in figures(row["runs"])))
    more = [name for name in every if name not in names]
    return (
        f'<h2 id="{escape(document["benchmark"])}">{escape(_title(document))}</h2>'
        f"<p>{escape(document.get('how', ''))}</p>"
        f'<img alt="{escape(_title(document))}" src="data:image/svg+xml;base64,{image}">'
        f"{_table(document, names)}"
        + (f"<details><summary>more figures</summary>{_table(document, more)}</details>" if more else "")
        + f'<p class="note">{escape(_facts(document))}</p>'
    )


def _table(document: Mapping[str, Any], names: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", "runs", *names))
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in cells(document, names))
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _title(document: Mapping[str, Any]) -> str:
    return str(document.get("title") or document["benchmark"])


def _facts(document: Mapping[str, Any]) -> str:
    machine = dict(document.get("machine") or {})
    versions = {**(machine.pop("versions", None) or {})}
    memory = machine.pop("memory_bytes", None)
    facts = {**machine, **versions, **({"memory": f"{memory / 2**30:.0f} GiB"} if memory else {})}
    told = [f"{name} {value}" for name, value in facts.items() if value not in (None, [], "")]
    settings = [f"{name} {value}" for name, value in (document.get("settings") or {}).items()]
    return f"Machine: {'; '.join(told)}. Settings: {'; '.join(settings)}."


def write(folder: Path, out: Path) -> list[Path]:
    """The report of all documents in `folder`; those that could not be read."""
    documents, unread = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            documents.append(load(path))
        except NotComparable:
            unread.append(path)
    out.write_text(html(documents))
    return unread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    options = parser.parse_args()
    unread = write(options.folder, options.out)
    print(json.dumps({"report": str(options.out), "unread": [str(path) for path in unread]}))


if __name__ == "__main__":
    main()
