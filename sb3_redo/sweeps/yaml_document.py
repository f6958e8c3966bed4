"""Reads YAML, and remembers the line of every value.

PyYAML reads as the zoo does: ``1e-4`` is text and ``y`` is no truth value. ruamel.yaml has lines, but with its YAML 1.1
both mean something else.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from sb3_redo.validation import UsageError, needs

with needs("sweep", "a sweep"):
    import yaml

Location = tuple[Hashable, ...]
"""Keys and numbers from the top of a document to a value in it."""


class Document:
    """Holds the content of a YAML file, and where in it everything is.

    :param file: to read
    :raises UsageError: when it cannot be read, naming the line
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            text = file.read_text()
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from error
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            self._lines: dict[Location, int] = {}
            self._seen: set[int] = set()
            self.content: Any = None
            if node is not None:
                self._note(loader, node, ())
                self.content = loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UsageError(f"{file}:{line}: this is no YAML: {error.problem}") from error
        except (TypeError, yaml.YAMLError) as error:  # keys can be lists in YAML, but not in Python
            raise UsageError(f"{file} is no YAML: {error}") from error

    def _note(self, loader: yaml.SafeLoader, node: yaml.Node, location: Location) -> None:
        self._lines[location] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            # An alias leads to the same node again, which then holds what was merged into it.
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
        # PyYAML keeps the last of two and says nothing.
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = loader.construct_object(key_node, deep=True)
            if key in seen:
                self._lines[(*location, key)] = key_node.start_mark.line + 1
                raise self.error("this key stands here twice", (*location, key))
            seen.add(key)

    def error(self, message: str, location: Sequence[Hashable] = ()) -> UsageError:
        """Return an error that names the file, the line of a value, and the way to it."""
        place = tuple(location)
        while place not in self._lines and place:
            place = place[:-1]
        where = ".".join(map(str, location))
        return UsageError(f"{self.file}:{self._lines.get(place, 1)}: {f'{where}: ' if where else ''}{message}")
