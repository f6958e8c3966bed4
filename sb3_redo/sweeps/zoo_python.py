"""Reads Python text that the zoo evaluates, without running it."""

import ast
import builtins
import difflib
from types import ModuleType
from typing import Any

EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")
"""Settings whose text the zoo evaluates."""
UNKNOWN: Any = object()
"""Stands for a value that only running the text would tell."""


def read_python(text: str) -> Any:
    """Return the value of an expression, with :data:`UNKNOWN` for the parts that only running it would tell.

    Classes are looked up where the zoo looks them up. Of all calls, ``dict(…)`` alone is read.

    :raises ValueError: on text that is no expression, or that has a name that the zoo does not know
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
    """Return what a name or a dotted path of modules stands for.

    :param own: names that the text itself gives to something
    """
    from rl_zoo3 import exp_manager

    if isinstance(node, ast.Attribute):
        owner = _look_up(node.value, own)
        if not isinstance(owner, ModuleType):  # asking anything else might run something
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
