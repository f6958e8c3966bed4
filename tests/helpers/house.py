"""Reads the structure of the package: which module imports which, and who calls an underscore name of whom."""

import ast
from collections import defaultdict

import networkx

OF_OTHERS = {"_parameters", "_buffers", "_modules", "_n_updates", "_last_obs", "_setup_model", "_replace"}
"""Underscore names of torch, SB3 and Python that ours happen to share."""

FLOORS = (
    ("validation",),
    ("forward",),
    ("wiring",),
    ("dormancy", "recycling"),
    ("networks",),
    ("sb3",),
    ("by_hand", "tensorboard"),
    ("callbacks",),
    ("interventions",),
    ("plasticity",),
    ("algorithms", "environments"),
    ("zoo",),
    ("reports",),
    ("sweeps",),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
"""The rooms from the ground up. Imports point down, and never sideways."""


def modules_of(package):
    """Map the dotted name of each module of a package to its file."""
    files = sorted(package.rglob("*.py"))
    named = {".".join(file.relative_to(package.parent).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in named.items()}


def imports_of(name, file, modules):
    """List the modules of the package that a module imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else node.module
                for alias in node.names
            }
    return {each for each in found if each in modules} - {name}


def graph_of(package):
    """Return the graph of a package's imports, module to module, without the ``__init__`` of a room."""
    modules = modules_of(package)
    graph = networkx.DiGraph()
    for name, file in modules.items():
        if file.name != "__init__.py":
            graph.add_edges_from((name, other) for other in imports_of(name, file, modules))
    return graph


def room_of(module):
    return module.split(".")[1] if "." in module else module


def circles(package):
    """List the groups of modules that import each other in a loop."""
    return [sorted(group) for group in networkx.strongly_connected_components(graph_of(package)) if len(group) > 1]


def upward_imports(package):
    """List the imports that do not point to a lower floor."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    arrows = ((one, other) for one, other in graph_of(package).edges if "." in other and room_of(one) != room_of(other))
    return sorted(f"{one} -> {other}" for one, other in arrows if floor[room_of(other)] >= floor[room_of(one)])


def foreign_underscores(package):
    """List the uses of an underscore name that only classes of another room define."""
    owners, uses = defaultdict(set), []
    for name, file in modules_of(package).items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                for each in defined_in(node):
                    owners[each].add(room_of(name))
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                uses.append((name, node.lineno, node.attr))
    return [
        f"{name}:{line}: {attribute}"
        for name, line, attribute in uses
        if attribute not in OF_OTHERS and owners[attribute] and room_of(name) not in owners[attribute]
    ]


def defined_in(cls):
    """Yield the names of a class's methods and attributes."""
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
