"""Draws ``docs/images/architecture.svg``: the folders of the package, their imports, and one recycling step.

``python -m docs.draw_architecture`` writes the picture. The arrows are the imports that the package has now.
"""

from pathlib import Path
from typing import NamedTuple

import networkx

from tests.helpers.house import graph_of, room_of

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT = 1180, 1090


class Box(NamedTuple):
    """A folder, or a module beside the folders.

    :param x: left edge, in pixels, as all that follow
    :param y: upper edge
    :param width: of the box
    :param height: of the box
    :param verb: what its code does, in capitals
    :param lines: what it holds
    """

    x: int
    y: int
    width: int
    height: int
    verb: str = ""
    lines: tuple[str, ...] = ()


BOXES = {
    "cli": Box(25, 25, 250, 64, "", ("sb3-redo inspect, sweep,", "report, experiment")),
    "experiments": Box(25, 125, 250, 46, "", ("the papers' experiments",)),
    "sweeps": Box(75, 207, 200, 64, "", ("grids of zoo trainings:", "read, run, resume")),
    "reports": Box(75, 307, 200, 64, "", ("from run folders alone:", "neither torch nor SB3")),
    "environments": Box(25, 407, 250, 46, "", ("block MDPs, image files",)),
    "plasticity": Box(745, 252, 200, 64, "", ("instruments: ranks,", "norms, curvature …")),
    "interventions": Box(745, 352, 200, 46, "", ("rivals of ReDo",)),
    "zoo": Box(975, 252, 180, 64, "", ("saved agents, names", "of policies")),
    "algorithms": Box(975, 352, 180, 46, "", ("Double DQN, DrQ …",)),
    "networks": Box(975, 452, 180, 64, "", ("policies with a width,", "optimizers")),
    "callbacks": Box(305, 445, 420, 140, "ACT"),
    "tensorboard": Box(25, 630, 240, 80, "TELL"),
    "by_hand": Box(585, 615, 115, 46, "", ("for own loops",)),
    "sb3": Box(405, 687, 220, 80, "ADAPT"),
    "dormancy": Box(305, 817, 200, 80, "MEASURE"),
    "recycling": Box(525, 817, 200, 80, "RECYCLE"),
    "wiring": Box(305, 932, 420, 46, "READ", ("which neuron feeds what",)),
    "forward": Box(305, 1010, 850, 46, "", ("one forward pass of any module: watched, changed, everything put back",)),
    "validation": Box(25, 1010, 250, 46, "", ("checks of arguments",)),
}
"""All of the package but ``__main__``, which only starts ``cli``. What is imported lies below what imports it."""

ROUTE = (
    ("callbacks/step_hooks.py", "_leave", 0),
    ("callbacks/clock.py", "_tick", 1),
    ("callbacks/gradient_steps.py", "_on_gradient_step", 2),
    ("callbacks/redo.py", "after_gradient_steps", 3),
    ("callbacks/monitoring.py", "measure_for_change", 4),
    ("callbacks/measurer.py", "measure", 5),
    ("sb3/buffers.py", "sample_batch", 6),
    ("dormancy/meter.py", "measure", 6),
    ("recycling/step.py", "recycle", 4),
    ("tensorboard.py", "write_point", 4),
)
"""One recycling step: file, function, and the number of the file that calls it, from 1; 0 is torch."""

LINES = {
    ("callbacks", "sb3"): "M 515 585 V 687",
    ("callbacks", "dormancy"): "M 355 585 V 817",
    ("callbacks", "recycling"): "M 713 585 V 817",
    ("callbacks", "tensorboard"): "M 305 545 H 165 Q 145 545 145 565 V 630",
    ("experiments", "environments"): "M 50 171 V 407",
    ("interventions", "callbacks"): "M 775 398 C 775 428 690 405 690 445",
    ("interventions", "networks"): "M 915 398 C 915 440 1020 415 1020 452",
    ("sweeps", "callbacks"): "M 275 255 C 320 255 330 330 330 445",
    ("sweeps", "zoo"): "M 275 225 H 1045 Q 1065 225 1065 252",
    ("tensorboard", "dormancy"): "M 225 710 C 225 800 270 857 305 857",
}
"""The lines of arrows that are not drawn straight from one box down to the other."""

STYLE = """
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.name { font: 700 16px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.file { font: 14px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.line { font-size: 14px; fill: #4b535d; }
.verb { font-size: 12px; font-weight: 700; letter-spacing: 0.08em; fill: #a34700; }
.head { font-size: 22px; font-weight: 700; }
.number { font-size: 12px; font-weight: 700; fill: #ffffff; }
.page { fill: #ffffff; } .torch { fill: #eef5fb; stroke: #6b8fb0; stroke-dasharray: 6 5; }
.box { fill: #f6f8fa; stroke: #8c959f; } .passed { fill: #fff4ea; stroke: #c75000; stroke-width: 2.5; }
.import { stroke: #6e7781; stroke-width: 1.4; fill: none; } .tip { fill: #6e7781; }
.route { stroke: #c75000; stroke-width: 4; fill: none; } .routetip, .dot { fill: #c75000; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .line { fill: #b3bcc6; } .verb { fill: #f0a04b; } .number { fill: #14181d; }
.page { fill: #0d1117; } .torch { fill: #10202e; stroke: #5d87ab; }
.box { fill: #1b222a; stroke: #7d8590; } .passed { fill: #2c2013; stroke: #f0a04b; }
.import { stroke: #8b949e; } .tip { fill: #8b949e; } .route { stroke: #f0a04b; } .routetip, .dot { fill: #f0a04b; }
}
"""

LEGEND = """
<text class="head" x="315" y="50">sb3_redo: folders, imports, and one recycling step</text>
<path class="import" d="M 315 82 H 355" marker-end="url(#tip)"/>
<text class="line" x="368" y="87">imports; left out where a longer path of arrows implies it</text>
<path class="route" d="M 315 112 H 355" marker-end="url(#routetip)"/>
<text class="line" x="368" y="117">one recycling step, in the order of the numbers</text>
<rect class="torch" x="315" y="132" width="40" height="20" rx="4"/>
<text class="line" x="368" y="147">needs torch alone: neither SB3 nor Gymnasium, the zoo, TensorBoard or pandas</text>
<text class="line" x="315" y="177">All arrows point down. Every folder may import validation.</text>
<text class="file" x="438" y="402">optimizer.step()</text>
<path class="route" d="M 505 411 V 445" marker-end="url(#routetip)"/>
<text class="line" x="25" y="732">event files, CSV, JSON</text>
"""


def downward(arrow: tuple[str, str]) -> bool:
    """Return whether an arrow points from a box to one that lies below it."""
    one, other = arrow
    return BOXES[one].y < BOXES[other].y


def imports(package: Path) -> set[tuple[str, str]]:
    """Return which box imports which. Leaves out what ``__main__`` imports.

    :param package: folder of the package
    """
    arrows = {(room_of(one), room_of(other)) for one, other in graph_of(package).edges}
    return {arrow for arrow in arrows if arrow[0] != arrow[1] and "__main__" not in arrow and "sb3_redo" not in arrow}


def calls() -> list[tuple[str, str]]:
    """Return the arrows of the recycling step, from box to box."""
    boxes = ["", *(_box_of(file) for file, _, _ in ROUTE)]
    arrows = dict.fromkeys((boxes[caller], box) for box, (_, _, caller) in zip(boxes[1:], ROUTE, strict=True))
    return [(one, other) for one, other in arrows if one and one != other]


def draw(package: Path) -> str:
    """Return the picture as SVG.

    Imports that point up are not drawn; ``tests/test_imports.py`` forbids them.

    :param package: folder of the package
    """
    needed = networkx.transitive_reduction(networkx.DiGraph(filter(downward, imports(package)))).edges
    route = calls()
    arrows = sorted((one, other) for one, other in set(needed) - set(route) if other != "validation")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="The folders of sb3_redo, what they import, and the files of one recycling step">',
            f"<style>{STYLE}</style>",
            f"<defs>{_marker('tip', 11)}{_marker('routetip', 16)}</defs>",
            f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="12"/>',
            '<rect class="torch" x="290" y="799" width="880" height="275" rx="12"/>',
            *(f'<path class="import" d="{_path(*arrow)}" marker-end="url(#tip)"/>' for arrow in arrows),
            *(f'<path class="route" d="{_path(*arrow)}" marker-end="url(#routetip)"/>' for arrow in route),
            *(line for name in BOXES for line in _drawn(name)),
            LEGEND.strip(),
            "</svg>\n",
        ]
    )


def _box_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def _marker(name: str, size: int) -> str:
    placed = f'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size}" markerHeight="{size}"'
    head = f'<path class="{name}" d="M 0 0 L 10 5 L 0 10 z"/>'
    return f'<marker id="{name}" {placed} markerUnits="userSpaceOnUse" orient="auto">{head}</marker>'


def _path(one: str, other: str) -> str:
    above, below = BOXES[one], BOXES[other]
    left, right = max(above.x, below.x), min(above.x + above.width, below.x + below.width)
    straight = f"M {(left + right) // 2} {above.y + above.height} V {below.y}"
    return LINES.get((one, other), straight)


def _drawn(name: str) -> list[str]:
    """Return a box: its name, what it holds, and its files on the route with their numbers."""
    box = BOXES[name]
    files = [(number, file) for number, (file, _, _) in enumerate(ROUTE, 1) if _box_of(file) == name]
    kind = "box passed" if files else "box"
    drawn = [f'<rect class="{kind}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="8"/>']
    drawn.append(f'<text class="name" x="{box.x + 12}" y="{box.y + 20}">{name}</text>')
    if box.verb:
        at = f'x="{box.x + box.width - 12}" y="{box.y + 19}"'
        drawn.append(f'<text class="verb" {at} text-anchor="end">{box.verb}</text>')
    for place, line in enumerate(box.lines):
        drawn.append(f'<text class="line" x="{box.x + 12}" y="{box.y + 38 + 18 * place}">{line}</text>')
    for place, (number, file) in enumerate(files):
        x, y = box.x + 24 + place // 3 * 200, box.y + 50 + place % 3 * 32
        drawn.append(f'<circle class="dot" cx="{x}" cy="{y}" r="10"/>')
        drawn.append(f'<text class="number" x="{x}" y="{y + 4.5}" text-anchor="middle">{number}</text>')
        drawn.append(f'<text class="file" x="{x + 18}" y="{y + 5}">{file.split("/")[-1]}</text>')
    return drawn


if __name__ == "__main__":
    PICTURE.write_text(draw(ROOT / "sb3_redo"), encoding="utf-8")
