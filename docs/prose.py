"""Counts words per sentence in pages and docstrings: ``python -m docs.prose`` prints a row for each file."""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
MEAN, LONGEST = 20, 40  # words per sentence: at most, on average and in each
LEAD = 3  # words; shorter ones are labels, such as "Period." before a paragraph, and would lower the mean

_MARKDOWN = MarkdownIt().enable("table")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"\b(al|cf|e\.g|i\.e|vs|Eq|Fig|Sec|App|approx|Def)\.")
_TABLE = re.compile(r"^ *=[= ]+$.*^ *=[= ]+$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*:(\w+)[^:]*:", re.MULTILINE)


@dataclass(frozen=True)
class Prose:
    """The sentences of one file, each as its words."""

    path: Path
    text: list[str]  # of paragraphs, list items and docstrings
    cells: list[str]  # of tables: only their longest sentences count

    @property
    def mean(self) -> float:
        """Return the mean number of words per sentence."""
        return statistics.fmean([length for each in self.text if (length := words(each)) >= LEAD] or [0])

    @property
    def too_long(self) -> list[str]:
        """Return the sentences with more words than ``LONGEST``."""
        return [each for each in (*self.text, *self.cells) if words(each) > LONGEST]


def words(sentence: str) -> int:
    """Count words. A code span is one."""
    return len(re.findall(r"\w[\w.,'%/-]*", sentence))


def prose_of(path: Path) -> Prose:
    """Read the sentences of a Markdown page, or of all docstrings of a Python file."""
    source = path.read_text(encoding="utf-8")
    text: list[str] = []
    cells: list[str] = []
    for each in [source] if path.suffix == ".md" else _docstrings(source):
        for is_cell, sentence in _sentences(each):
            (cells if is_cell else text).append(sentence)
    return Prose(path, text, cells)


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A field such as ":param x:" begins a paragraph of its own.
            yield _FIELD.sub("\n", _TABLE.sub("", ast.get_docstring(node) or ""))


def _sentences(markdown: str) -> Iterator[tuple[bool, str]]:
    """Yield each sentence, and whether it stands in a table. Headings, quotations and code are left out."""
    inside: list[str] = []
    for token in _MARKDOWN.parse(markdown):
        if token.nesting:
            inside = [*inside, token.tag] if token.nesting > 0 else inside[:-1]
        elif token.type == "inline" and not {"h1", "h2", "h3", "h4", "blockquote"} & set(inside):
            text = _ABBREVIATION.sub(r"\1", "".join(map(_shown, token.children or ())))
            yield from (("table" in inside, sentence) for sentence in _END.split(text) if words(sentence))


def _shown(token: Token) -> str:
    if token.type == "code_inline":
        return "Code"
    return " " if token.type.endswith("break") else token.content if token.type == "text" else ""


def files() -> list[Path]:
    """Return all pages and modules that the rules hold for."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path for path in pages if "_build" not in path.parts) + sorted((ROOT / "sb3_redo").rglob("*.py"))


def main(details: bool) -> None:
    """Print a row for each file with prose: mean words per sentence, and sentences that are too long."""
    print(f"{'file':58} {'sentences':>9} {'mean':>6} {f'over {LONGEST}':>8}")
    found = [prose for path in files() if (prose := prose_of(path)).text]
    for prose in found:
        name = prose.path.relative_to(ROOT).as_posix()
        print(f"{name:58} {len(prose.text):9} {prose.mean:6.1f} {len(prose.too_long):8}")
        for sentence in prose.too_long if details else ():
            print(f"    {words(sentence)}: {sentence}")
    for kind, suffix in (("all pages", ".md"), ("all docstrings", ".py")):
        every = [each for each in found if each.path.suffix == suffix]
        text, cells = ([sentence for each in every for sentence in getattr(each, part)] for part in ("text", "cells"))
        whole = Prose(ROOT, text, cells)
        print(f"{kind:58} {len(whole.text):9} {whole.mean:6.1f} {len(whole.too_long):8}")


if __name__ == "__main__":
    main("--sentences" in sys.argv)
