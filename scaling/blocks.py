"""A report as blocks, written twice: as Markdown and as one page of HTML."""

from collections.abc import Sequence
import dataclasses
from html import escape
import re

from rankax.observe import report as run_report
from scaling import drawing
from scaling.drawing import Figure


@dataclasses.dataclass(frozen=True, slots=True)
class Heading:
    """Of a section."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; **so** is bold."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Header and rows of texts; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A figure, which lies beside the report too."""

    figure: Figure
    folder: str


Block = Heading | Text | Points | Table | Picture


def markdown(title: str, facts: str, blocks: Sequence[Block]) -> str:
    """Returns the report as Markdown."""
    parts = [f"# {title}", facts, *(_markdown(block) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def html(title: str, facts: str, blocks: Sequence[Block], *, note: str) -> str:
    """Returns the report as a page that needs nothing else.

    Blocks before the first heading are its summary.
    """
    first = next(i for i, b in enumerate(blocks) if isinstance(b, Heading))
    return run_report.PAGE.substitute(
        style=run_report.PAGE_STYLE + drawing.CSS + _STYLE,
        name=escape(title),
        facts=escape(facts),
        verdicts="".join(_html(block) for block in blocks[:first]),
        tiles="",
        sections="\n".join(_html(block) for block in blocks[first:]),
        note=escape(note),
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Points(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(header, rows):
            rule = ["---", *["--:"] * (len(header) - 1)]
            lines = [header, rule, *rows]
            cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Picture(figure, folder):
            path = f"{folder}/{figure.name}.png"
            return f"![{figure.title}]({path})"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text):
            return f"<p>{_bold(text)}</p>"
        case Points(items):
            return "<ul>" + "".join(f"<li>{_bold(i)}" for i in items) + "</ul>"
        case Table(header, rows):
            head = "".join(f"<th>{escape(cell)}" for cell in header)
            body = "".join(
                f"<tr><th>{escape(row[0])}"
                + "".join(f"<td>{escape(cell)}" for cell in row[1:])
                for row in rows
            )
            return (
                f"<div class=scroll><table class=study><thead><tr>{head}</thead>"
                f"<tbody>{body}</tbody></table></div>"
            )
        case Picture(figure, _):
            is_wide = " class=wide" if figure.size[0] > 7 else ""
            return (
                f"<figure{is_wide}><figcaption><b>{escape(figure.title)}</b> "
                f"{escape(figure.note)}</figcaption>{drawing.inline(figure)}</figure>"
            )


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))


_STYLE = """
.study th, .study td { text-align: right; white-space: nowrap; }
.study th:first-child { text-align: left; }
.study thead th { vertical-align: bottom; }
.study td:last-child, .study th:last-child { white-space: normal; padding-right: 0; }
figure { margin: 18px 0; } figure.wide { max-width: 100%; }
.verdicts { font-size: 16px; } ul { padding-left: 20px; } li { margin: 4px 0; }
"""
