"""Reads YAML, and remembers the line of every value.

PyYAML reads values as the zoo does: ``1e-4`` and ``y`` are text. ruamel.yaml also records lines, but reads both
differently in its YAML 1.1.
"""

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from sb3_redo.validation import UsageError, needs

with needs("sweep", "a sweep"):
    import yaml

Location = tuple[Hashable, ...]
"""The keys and list positions that lead to a value in a document."""

# Far larger than handwritten files, and still read in about a second.
_MOST_CHARACTERS = 200_000
_MOST_VALUES = 20_000
_DEEPEST = 40
_LONGEST_MESSAGE = 700
_YAML = "tag:yaml.org,2002:"
_PLAIN = {
    yaml.ScalarNode: {f"{_YAML}{kind}" for kind in ("null", "bool", "int", "float", "str")},
    yaml.SequenceNode: {f"{_YAML}seq"},
    yaml.MappingNode: {f"{_YAML}map"},
}


class Document:
    """Holds the content of a YAML file, with the line of every value.

    The content is plain: text, numbers, truth values, null, lists and mappings. Other tags are refused.

    :param file: to read
    :raises UsageError: with the line, when it cannot be read or is too large
    """

    def __init__(self, file: Path):
        self.file = file
        self._lines: dict[Location, int] = {}
        self._seen: set[int] = set()
        self._sizes: dict[int, int] = {}
        self.content: Any = None
        self.text = self._text()
        try:
            loader = yaml.SafeLoader(self.text)
            node = loader.get_single_node()
            if node is not None:
                # Checked before anything is built: nested aliases can expand to more values than fit into memory.
                self._measure(loader, node, ())
                self._note(loader, node, ())
                self.content = loader.construct_document(node)
        except RecursionError:
            raise UsageError(f"{file}: expected values at most {_DEEPEST} deep, got deeper ones") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UsageError(f"{file}:{line}: this is no YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise UsageError(f"{file} is no YAML: {error}") from error

    def _text(self) -> str:
        try:
            if self.file.exists() and not self.file.is_file() and not self.file.is_dir():
                raise UsageError(f"{self.file} is not a regular file")  # reading a pipe may never end
            with open(self.file, encoding="utf-8") as stream:
                text = stream.read(_MOST_CHARACTERS + 1)
        except OSError as error:
            raise UsageError(f"{self.file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise UsageError(f"{self.file} cannot be read: it is not text in UTF-8") from None
        except UsageError:
            raise
        except ValueError as error:  # a path with a NUL
            raise UsageError(f"{str(self.file)!r} cannot be read: {error}") from None
        if len(text) > _MOST_CHARACTERS:
            raise UsageError(f"{self.file}: expected at most {_MOST_CHARACTERS:,} characters, got more")
        return text

    def _measure(self, loader: yaml.SafeLoader, node: yaml.Node, above: tuple[int, ...]) -> int:
        """Count the values of a node with all aliases expanded. Refuse values that are not plain."""
        if id(node) in above:
            raise self._error_at(node, "an alias leads back to the value that it is in")
        if len(above) > _DEEPEST:
            raise self._error_at(node, f"expected values at most {_DEEPEST} deep, got deeper ones")
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        if node.tag not in _PLAIN[type(node)]:
            kind = node.tag.replace(_YAML, "!!")
            if kind == "!!timestamp":
                raise self._error_at(node, f"expected text, got a date: put {node.value[:80]!r} in quotes")
            raise self._error_at(node, f"expected text, a number, a list or a mapping, got the tag {kind[:80]!r}")
        size = 1
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(loader, node)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(self._measure(loader, item, (*above, id(node))) for item in node.value)
        else:
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise self._error_at(key, "expected text or a number for a key, got a list or a mapping")
                if key.tag != f"{_YAML}merge":
                    size += self._measure(loader, key, (*above, id(node)))
                size += self._measure(loader, value, (*above, id(node)))
        if size > _MOST_VALUES:
            raise self._error_at(node, f"expected at most {_MOST_VALUES:,} values, got {size:,} with all aliases")
        self._sizes[id(node)] = size
        return size

    def _check_scalar(self, loader: yaml.SafeLoader, node: yaml.Node) -> None:
        try:
            value = loader.construct_object(node)
        except Exception:  # PyYAML does not catch errors of int() and of its tables
            raise self._error_at(node, f"{node.value[:80]!r} cannot be read as {node.tag.replace(_YAML, '')}") from None
        if isinstance(value, float) and math.isnan(value):
            raise self._error_at(node, "expected a number, got NaN")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self._error_at(node, f"expected a number of 64 bits, got one of {len(node.value)} characters")
        if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
            raise self._error_at(node, f"expected text, got {value[:80]!r}, which has invalid characters")

    def _error_at(self, node: yaml.Node, message: str) -> UsageError:
        return UsageError(f"{self.file}:{node.start_mark.line + 1}: {message}")

    def _note(self, loader: yaml.SafeLoader, node: yaml.Node, location: Location) -> None:
        self._lines[location] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            # An alias refers to the same node, which already contains merged keys.
            if id(node) not in self._seen:
                self._seen.add(id(node))
                self._refuse_twins(loader, node, location)
                loader.flatten_mapping(node)
            for key_node, value in node.value:
                key = loader.construct_object(key_node, deep=True)
                self._note(loader, value, (*location, key))
                self._lines[(*location, key)] = key_node.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self._note(loader, value, (*location, number))

    def _refuse_twins(self, loader: yaml.SafeLoader, node: yaml.MappingNode, location: Location) -> None:
        # PyYAML silently keeps the last of two equal keys.
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = loader.construct_object(key_node, deep=True)
            if key in seen:
                self._lines[(*location, key)] = key_node.start_mark.line + 1
                raise self.error("duplicate key", (*location, key))
            seen.add(key)

    def error(self, message: str, location: Sequence[Hashable] = ()) -> UsageError:
        """Return an error with the file, the line of a value and its keys."""
        place = tuple(location)
        while place not in self._lines and place:
            place = place[:-1]
        where = ".".join(map(str, location))[:_LONGEST_MESSAGE]
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[: _LONGEST_MESSAGE // 2]} … {message[-_LONGEST_MESSAGE // 2 :]}"
        return UsageError(f"{self.file}:{self._lines.get(place, 1)}: {f'{where}: ' if where else ''}{message}")
