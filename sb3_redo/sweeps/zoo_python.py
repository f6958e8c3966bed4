"""Reads Python text that the zoo evaluates, without running it."""

import ast
import builtins
import difflib
from types import ModuleType
from typing import Any

EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")
"""Settings that the zoo evaluates as Python text."""
UNKNOWN: Any = object()
"""Stands for a value that is only known by running the text."""


def read_python(text: str) -> Any:
    """Return the value of an expression, with :data:`UNKNOWN` for parts that are only known by running it.

    Classes are looked up in the zoo's namespace. Among calls, only ``dict(…)`` is read.

    :raises ValueError: on text that is not an expression, or with a name unknown to the zoo
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        nodes = list(ast.walk(tree))
        own = {node.arg for node in nodes if isinstance(node, ast.arg)}
        own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, (ast.Name, ast.Attribute)):
                _look_up(node, own)
        return _value(tree.body, own)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"expected an expression in Python that the zoo can evaluate, got {text[:200]!r}: {error}"
        ) from None


def _value(node: ast.expr, own: set[str]) -> Any:
    if isinstance(node, (ast.Name, ast.Attribute)):
        return _look_up(node, own)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        values = (_value(value, own) for value in node.values)
        return {ast.literal_eval(key): value for key, value in zip(node.keys, values, strict=True) if key is not None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        parts = [_value(part, own) for part in node.args]
        parts += [{word.arg: _value(word.value, own)} if word.arg else UNKNOWN for word in node.keywords]
        if all(isinstance(part, dict) for part in parts):
            return {key: value for part in parts for key, value in part.items()}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return UNKNOWN


def _look_up(node: ast.expr, own: set[str]) -> Any:
    """Return the object behind a name or a dotted path.

    :param own: names defined in the text itself
    """
    from rl_zoo3 import exp_manager

    if isinstance(node, ast.Attribute):
        owner = _look_up(node.value, own)
        if not isinstance(owner, ModuleType):  # reading other attributes might run code
            return UNKNOWN
        known, name, place = vars(owner), node.attr, owner.__name__
        if name not in known and hasattr(owner, name):
            return getattr(owner, name)
    elif isinstance(node, ast.Name) and node.id not in own:
        known, name, place = vars(builtins) | vars(exp_manager), node.id, "the zoo"
    else:
        return UNKNOWN
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{place} has no {name!r}{hint}")
    return known[name]
