"""Tables of several inspected agents: one line per agent, or two agents side by side."""

from collections.abc import Sequence

from sb3_redo.validation import printable
from sb3_redo.zoo.inspection import Failure, Inspection, aligned


def overview(found: Sequence[Inspection | Failure]) -> str:
    """Return a table with a line for each agent, and one for each failure below it.

    :param found: the results of each agent
    """
    inspections = [each for each in found if isinstance(each, Inspection)]
    lines = []
    if inspections:
        thresholds = sorted({threshold for each in inspections for threshold in each.thresholds})
        head = ["agent", "algorithm", "environment", "neurons", "return", "saved"]
        for threshold in thresholds:
            head += [f"at {threshold:g}", "fresh"]
        lines += aligned([head, *(_line(each, thresholds) for each in inspections)])
    failures = [each for each in found if isinstance(each, Failure)]
    lines += [printable(f"{failure.path}: {failure.reason}") for failure in failures]
    lines.append(
        f"{len(inspections)} of {len(found)} agents inspected; shares are of dormant neurons, all layers pooled"
    )
    return "\n".join(lines)


def _line(inspection: Inspection, thresholds: Sequence[float]) -> list[str]:
    cells = [printable(str(inspection.path)), inspection.algorithm, inspection.environment]
    cells.append(str(sum(layer.neurons for layer in inspection.report.layers)))
    cells += [
        "-" if value is None else f"{value:.1f}" for value in (inspection.episode_return, inspection.saved_return)
    ]
    for threshold in thresholds:
        cells += [f"{inspection.fraction(threshold):.1%}", f"{inspection.fresh_fraction(threshold):.1%}"]
    return cells


def compared(one: Inspection, other: Inspection) -> str:
    """Return a table of two agents: the dormant shares of each layer, at each threshold of the first.

    :param one: an agent
    :param other: another one
    """
    names = dict.fromkeys(layer.name for each in (one, other) for layer in each.report.layers)
    head = ["layer"]
    for threshold in one.thresholds:
        head += [f"A at {threshold:g}", "B", "difference"]
    rows = [head, *([name, *_pair(one, other, name)] for name in names), ["all", *_pair(one, other, None)]]
    lines = [printable(f"{letter}: {each.path}, {each.where()}") for letter, each in (("A", one), ("B", other))]
    return "\n".join([*lines, *aligned(rows)])


def _pair(one: Inspection, other: Inspection, layer: str | None) -> list[str]:
    cells = []
    for threshold in one.thresholds:
        shares = [
            each.fraction(threshold, layer)
            if layer is None or any(found.name == layer for found in each.report.layers)
            else None
            for each in (one, other)
        ]
        cells += ["-" if share is None else f"{share:.1%}" for share in shares]
        first, second = shares
        cells.append("-" if first is None or second is None else f"{second - first:+.1%}")
    return cells
