"""A report as one HTML page that needs no other file, and as Markdown with PNG files: the same parts in both."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from backbone.checkpoint import write_atomically
from scripts.reporting.figures import MATPLOTLIB_OPTIONS, save_figure
from scripts.reporting.tables import Table, escaped

STYLE = """
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1f2328; background: #fff;
  max-width: 1080px; margin: 0 auto; padding: 2rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid #d8dee4; } p, li { max-width: 74ch; }
nav ol { columns: 2; font-size: .95rem; } a { color: #0072b2; }
figure { margin: 1.2rem 0 2rem; } figure img { width: 100%; height: auto; }
figcaption, caption { color: #59636e; font-size: .88rem; line-height: 1.45; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; max-width: 95ch; }
.table { overflow-x: auto; margin: 1rem 0 1.8rem; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eaeef2;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #d8dee4; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; } tbody tr:hover { background: #f6f8fa; }
td.better { color: #0072b2; } td.worse { color: #b34d00; }
pre { background: #f6f8fa; border: 1px solid #d8dee4; border-radius: 6px; padding: .7rem .9rem; font-size: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclass
class Page:
    """Parts in their order, each as HTML and as Markdown."""

    title: str
    parts: list[tuple[str, str]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    """By the names of their PNG files."""

    def heading(self, words: str) -> None:
        """Begin a section, which is in the table of contents."""
        self.headings.append(words)
        self.parts.append((f'<h2 id="s{len(self.headings)}">{escape(words)}</h2>', f"## {escaped(words)}"))

    def text(self, words: str) -> None:
        """Add a paragraph."""
        self.parts.append((f"<p>{escape(words)}</p>", escaped(words)))

    def listing(self, words: list[str]) -> None:
        """Add a list of sentences."""
        items = "".join(f"<li>{escape(each)}</li>" for each in words)
        self.parts.append((f"<ul>{items}</ul>", "\n".join(f"- {escaped(each)}" for each in words)))

    def code(self, text: str) -> None:
        """Add preformatted text."""
        self.parts.append((f"<pre>{escape(text)}</pre>", f"```\n{text.strip()}\n```"))

    def table(self, table: Table) -> None:
        """Add a table."""
        self.parts.append((table.html(), table.markdown()))

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a figure, called NAME.png next to the Markdown."""
        self.figures[f"{name}.png"] = figure
        image = f'<img src="{_data_uri(figure)}" alt="{escape(caption)}">'
        html = f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        self.parts.append((html, f"![{escaped(name)}](<{name}.png>)\n\n{escaped(caption)}"))

    def html(self) -> str:
        """The page: one file without references to others."""
        contents = "".join(f'<li><a href="#s{i}">{escape(words)}</a></li>' for i, words in enumerate(self.headings, 1))
        body = "\n".join(html for html, _ in self.parts)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>\n"
            f"<nav><ol>{contents}</ol></nav>\n{body}\n</body></html>\n"
        )

    def markdown(self) -> str:
        """The same in Markdown."""
        return "\n\n".join([f"# {escaped(self.title)}", *(markdown for _, markdown in self.parts)]) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write report.md, its PNG files and report.html, each atomically; returns the files."""
        files = {folder / name: figure for name, figure in self.figures.items()}
        for file, figure in files.items():
            save_figure(figure, file)
        texts = {folder / "report.md": self.markdown(), folder / "report.html": self.html()}
        for file, text in texts.items():
            write_atomically(file, text)
        return [*texts, *files]


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    figure.set_layout_engine("none")  # which is slow, and is done
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
