"""Sentences of pages and docstrings are short."""

import re

import pytest

from docs.prose import LONGEST, MEAN, ROOT, Prose, files, prose_of, words


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_sentences_are_short(path):
    prose = prose_of(path)
    assert prose.too_long == []
    assert prose.mean <= MEAN


@pytest.mark.parametrize("path", [path for path in files() if path.suffix == ".md"], ids=name_of)
def test_lines_of_pages_fit(path):
    text = re.sub(r"^```.*?^```|^\|.*?$|^!\[.*?$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 120] == []


PAGE = f"""# A heading. It is not counted

Two words. Three more words: `code, that is one`, et al. (2023).

- Dropped: code.
- One
  item over two lines.

| a table | {"word " * 41} |
|---|---|
| only | counts by its longest sentence |

```python
code = "is left out."
```

{"long " * 41}sentence. A [link with text](https://x.org).
"""

MODULE = '''
"""First sentence. Second one here.

>>> doctests = "are left out"
"""


def function(x):
    """Return something.

    :param x: begins a sentence of its own
    :return: another one
    """
    # Comments are not counted. They are not.
'''


def test_sentences_of_pages_are_found(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    prose = prose_of(tmp_path / "page.md")
    assert [words(sentence) for sentence in prose.text] == [2, 7, 2, 5, 42, 4]
    assert len(prose.too_long) == 2
    assert prose.mean == (7 + 5 + 42 + 4) / 4  # labels of two words do not count


def test_sentences_of_docstrings_are_found(tmp_path):
    (tmp_path / "module.py").write_text(MODULE)
    prose = prose_of(tmp_path / "module.py")
    expected = [
        "First sentence.",
        "Second one here.",
        "Return something.",
        "begins a sentence of its own",
        "another one",
    ]
    assert prose.text == expected


def test_what_breaks_the_rules_is_noticed():
    assert Prose(ROOT, ["word " * (LONGEST + 1)], []).too_long
    assert not Prose(ROOT, ["word " * LONGEST], []).too_long
    assert Prose(ROOT, ["word " * (MEAN + 1)], []).mean > MEAN
