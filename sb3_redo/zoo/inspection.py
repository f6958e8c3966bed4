"""Measures trained agents beside fresh networks of the same policy, and interprets the numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.gathering import gather_batch
from sb3_redo.sb3.measuring import measure_on
from sb3_redo.sb3.model import initial_weights_of
from sb3_redo.validation import needs, non_negative_integer, non_negative_number, positive_integer, printable
from sb3_redo.wiring.structure import Wiring
from sb3_redo.zoo.environments import EnvironmentOptions
from sb3_redo.zoo.hub import downloaded
from sb3_redo.zoo.loading import LoadedAgent, open_agent
from sb3_redo.zoo.saved_agents import one_line
from sb3_redo.zoo.sources import unpacked

if TYPE_CHECKING:
    import pandas

THRESHOLDS = (0.0, 0.025, 0.1)
"""Thresholds shown beside the requested one."""
DEFAULT_THRESHOLD = 0.1
_INTEGERS = ("observations", "seed", "episodes", "neurons", "dormant")
_NOTICEABLE = 0.05
"""Smaller differences to a fresh network, as a share of a layer, are not mentioned."""


@dataclass(frozen=True, repr=False)
class Inspection:
    """Dormant neurons of a trained agent, beside those of fresh networks. Prints as a table.

    :param path: of the agent
    :param algorithm: the zoo's name
    :param environment: id of the environment that the agent ran in
    :param seed: of the first measurement. The others use the following seeds.
    :param thresholds: in the order shown. The first is the requested one or that of the run.
    :param reports: one measurement for each seed
    :param fresh: measurements of fresh networks of the same policy on the observations of the first report
    :param activations: layer name to the name of its activation, or an empty string
    :param episode_returns: of the episodes that ended while observations were gathered
    :param saved_return: mean return of the last saved evaluation, or ``None``
    :param notes: differences from training, in words
    :param settings: the saved hyperparameters
    :param is_off_policy: whether it was trained on a replay buffer
    """

    path: Path
    algorithm: str
    environment: str
    seed: int
    thresholds: tuple[float, ...]
    reports: tuple[DormancyReport, ...]
    fresh: tuple[DormancyReport, ...]
    activations: Mapping[str, str]
    episode_returns: tuple[float, ...]
    saved_return: float | None
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    is_off_policy: bool

    @property
    def report(self) -> DormancyReport:
        """The measurement with the first seed."""
        return self.reports[0]

    @property
    def episode_return(self) -> float | None:
        """The mean return of the gathered episodes, or ``None`` if none ended."""
        return sum(self.episode_returns) / len(self.episode_returns) if self.episode_returns else None

    def fraction(self, threshold: float, layer: str | None = None) -> float:
        """Return the agent's dormant fraction, the mean over all seeds, in [0, 1].

        :param threshold: a neuron is dormant when its score is at most this
        :param layer: its name; all layers pooled if not given
        """
        return _mean_fraction(self.reports, threshold, layer)

    def fresh_fraction(self, threshold: float, layer: str | None = None) -> float:
        """Return the mean dormant fraction of the fresh networks, in [0, 1].

        :param threshold: a neuron is dormant when its score is at most this
        :param layer: its name; all layers pooled if not given
        """
        return _mean_fraction(self.fresh, threshold, layer)

    def spread(self, threshold: float, layer: str | None = None) -> float:
        """Return the largest minus the smallest dormant fraction over the seeds, in [0, 1].

        :param threshold: a neuron is dormant when its score is at most this
        :param layer: its name; all layers pooled if not given
        """
        found = [_fraction(report, threshold, layer) for report in self.reports]
        return max(found) - min(found)

    @cached_property
    def conclusion(self) -> str:
        """One sentence that compares the numbers with those of a fresh network."""
        threshold = self.thresholds[0]
        if self.report.not_finite:
            return f"Activations of {', '.join(self.report.not_finite)} are NaN or infinite: their shares mean nothing."
        excess = {layer.name: self._excess(threshold, layer.name) for layer in self.report.layers}
        worst = max(excess, key=lambda name: excess[name])
        if excess[worst] < _NOTICEABLE:
            return f"No layer has noticeably more dormant neurons at threshold {threshold:g} than a fresh network has."
        return (
            f"{worst}{self._position(worst)} has lost {self.fraction(threshold, worst):.0%} of its neurons at "
            f"threshold {threshold:g}; of a fresh one {self.fresh_fraction(threshold, worst):.0%} are dormant."
        )

    def _excess(self, threshold: float, layer: str) -> float:
        """Return the excess dormant share of a layer over fresh networks, or 0 if one of them has as much."""
        share = self.fraction(threshold, layer)
        most = max(_fraction(report, threshold, layer) for report in self.fresh)
        return share - self.fresh_fraction(threshold, layer) if share > most else 0.0

    def _position(self, name: str) -> str:
        layer = next(layer for layer in self.report.layers if layer.name == name)
        of_network = [other.name for other in self.report.layers if other.network == layer.network]
        feeds = self.report.wiring[name].consumers
        is_last = not any(other in feeds for other in of_network)
        return f", the last hidden layer of {layer.network}," if is_last else f", a layer of {layer.network},"

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each seed and layer, with the agent and the layer's measurements."""
        return [
            {
                **self._about(seed),
                "layer": layer.name,
                "network": layer.network,
                "neurons": layer.neurons,
                "activation": self.activations[layer.name],
                "recyclable": layer.recyclable,
                "dormant": int((layer.scores <= self.thresholds[0]).sum()),
                "dormant_fraction": _fraction(report, self.thresholds[0], layer.name),
                **{f"dormant_fraction_{t:g}": _fraction(report, t, layer.name) for t in sorted(self.thresholds)},
                **{f"fresh_fraction_{t:g}": self.fresh_fraction(t, layer.name) for t in sorted(self.thresholds)},
            }
            for seed, report in enumerate(self.reports, self.seed)
            for layer in report.layers
        ]

    def _about(self, seed: int) -> dict[str, Any]:
        return {
            "path": _encodable(self.path),
            "status": "ok",
            "reason": "",
            "algorithm": self.algorithm,
            "environment": self.environment,
            "observations": self.report.observations,
            "seed": seed,
            "episodes": len(self.episode_returns),
            "episode_return": self.episode_return,
            "saved_return": self.saved_return,
        }

    def to_frame(self) -> "pandas.DataFrame":
        """Tabulate one row for each seed and layer, see :meth:`rows`.

        :raises MissingPackageError: without pandas
        """
        return to_frame([self])

    def to_dict(self) -> dict[str, Any]:
        """Return all results as numbers, strings, lists and dictionaries, for JSON."""
        return {
            **self._about(self.seed),
            "seeds": len(self.reports),
            "thresholds": list(self.thresholds),
            "dormant_fraction": {f"{t:g}": self.fraction(t) for t in self.thresholds},
            "fresh_fraction": {f"{t:g}": self.fresh_fraction(t) for t in self.thresholds},
            "layers": [
                {
                    "layer": layer.name,
                    "network": layer.network,
                    "neurons": layer.neurons,
                    "activation": self.activations[layer.name],
                    "dormant_fraction": {f"{t:g}": self.fraction(t, layer.name) for t in self.thresholds},
                    "fresh_fraction": {f"{t:g}": self.fresh_fraction(t, layer.name) for t in self.thresholds},
                    "spread": {f"{t:g}": self.spread(t, layer.name) for t in self.thresholds},
                }
                for layer in self.report.layers
            ],
            "notes": list(self.notes),
            "conclusion": self.conclusion,
        }

    def __str__(self) -> str:
        lines = [str(self.report).splitlines()[0], self.where(), *self._table()]
        lines += [f"Note: {note}." for note in self.notes]
        if any("tanh" in name.lower().split() for name in self.activations.values()):
            lines.append(
                "A Tanh neuron has a small score if it stays near 0 for every observation. A saturated Tanh neuron "
                "learns little, too, but has a large score."
            )
        where = "older policies, from the replay buffer" if self.is_off_policy else "the rollout that is trained on"
        lines.append(
            "Observations come from the saved policy with its exploration. Training curves are measured on those of "
            f"{where}."
        )
        return "\n".join([*lines, self.conclusion])

    __repr__ = __str__

    def light(self) -> "Inspection":
        """Return a copy without the observations, to save memory."""
        return replace(
            self,
            reports=tuple(replace(report, batch=_rows_alone(report.observations)) for report in self.reports),
            fresh=tuple(replace(report, batch=_rows_alone(report.observations)) for report in self.fresh),
        )

    def where(self) -> str:
        """Describe the environment and the returns in words."""
        number = len(self.episode_returns)
        episodes = "1 episode" if number == 1 else f"{number} episodes"
        earned = (
            "no episode ended" if self.episode_return is None else f"{episodes}, mean return {self.episode_return:.1f}"
        )
        saved = "" if self.saved_return is None else f" (last saved evaluation: {self.saved_return:.1f})"
        seeds = f", seeds {self.seed} to {self.seed + len(self.reports) - 1}" if len(self.reports) > 1 else ""
        return f"{self.algorithm} in {self.environment}{seeds}: {earned}{saved}"

    def _table(self) -> list[str]:
        head = ["layer", "neurons", "activation"]
        for threshold in self.thresholds:
            head += [f"at {threshold:g}", "fresh"]
        rows = [head]
        for layer in self.report.layers:
            row = [layer.name, str(layer.neurons), self.activations[layer.name] or "-"]
            rows.append(row + self._cells(layer.name))
        total = sum(layer.neurons for layer in self.report.layers)
        rows.append(["all", str(total), "", *self._cells(None)])
        return aligned(rows)

    def _cells(self, layer: str | None) -> list[str]:
        cells = []
        for threshold in self.thresholds:
            spread = f" ±{self.spread(threshold, layer) / 2:.1%}" if len(self.reports) > 1 else ""
            cells += [f"{self.fraction(threshold, layer):.1%}{spread}", f"{self.fresh_fraction(threshold, layer):.1%}"]
        return cells


@dataclass(frozen=True)
class Failure:
    """The reason why an agent could not be inspected.

    :param path: of the agent
    :param reason: in one line
    :param is_usage: whether it is a usage error, not a failure
    """

    path: Path
    reason: str
    is_usage: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """Return one row with the reason."""
        return [{"path": _encodable(self.path), "status": "failed", "reason": self.reason}]

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return self.rows()[0]


def inspect_agent(
    path: str | Path,
    *,
    algorithm: str | None = None,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    gym_packages: Sequence[str] = (),
    wrappers: Sequence[str] | None = None,
    n_stack: int | None = None,
    vec_normalize: str | Path | None = None,
    n_samples: int = 5000,
    dormancy_threshold: float | None = None,
    seed: int = 0,
    seeds: int = 1,
    fresh_networks: int = 3,
    safe: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Inspection:
    """Run a trained agent as it explored, and measure it beside fresh networks of the same policy.

    Agents, statistics and settings are pickles: they may run any code. With ``safe`` only tensors and known classes
    are unpickled.

    :param path: a zip, the folder of a zoo run, a folder in the layout of the Hugging Face Hub, the zip of a folder, or
        ``owner/name`` on the Hub
    :param algorithm: the zoo's name, if the zip does not tell
    :param env: id of the environment, or ``"auto"`` for that of the run or its successor
    :param env_kwargs: keyword arguments of the environment. They override those of the run.
    :param gym_packages: modules that register environments, besides those of the run
    :param wrappers: dotted paths of wrappers, instead of those of the run
    :param n_stack: frames to stack, instead of those of the run
    :param vec_normalize: statistics of ``VecNormalize``, instead of those of the run
    :param n_samples: observations per seed
    :param dormancy_threshold: shown first. Default: that of the run's callback, else 0.1.
    :param seed: of all draws
    :param seeds: number of measurements, each with its own seed
    :param fresh_networks: number of fresh networks to compare with
    :param safe: whether to unpickle only tensors and known classes
    :param progress: called after every step with the number of new observations
    :raises UsageError: when there is no agent, or it does not fit the settings
    :raises RuntimeError: when the agent cannot be measured
    """
    positive_integer("n_samples", n_samples)
    positive_integer("seeds", seeds)
    positive_integer("fresh_networks", fresh_networks)
    non_negative_integer("seed", seed)
    if dormancy_threshold is not None:
        non_negative_number("dormancy_threshold", dormancy_threshold)
    statistics = None if vec_normalize is None else Path(vec_normalize)
    options = EnvironmentOptions(env, env_kwargs, gym_packages, wrappers, n_stack, statistics)
    with ExitStack() as stack:
        found = stack.enter_context(unpacked(downloaded(Path(path))))
        loaded = open_agent(found, algorithm, options, safe=safe)
        stack.callback(loaded.close)
        thresholds = _thresholds(dormancy_threshold, loaded)
        returns: list[float] = []
        reports = []
        for number in range(seed, seed + seeds):
            batch = gather_batch(loaded.model, n_samples, number, progress=progress, on_episode=returns.append)
            reports.append(measure_on(loaded.model, batch, thresholds[0]))
        return Inspection(
            path=Path(path),
            algorithm=type(loaded.model).__name__,
            environment=loaded.environment,
            seed=seed,
            thresholds=thresholds,
            reports=tuple(reports),
            fresh=tuple(fresh_report(loaded.model, reports[0], number) for number in range(fresh_networks)),
            activations={
                layer.name: _activation(loaded.model.policy, reports[0].wiring, layer.name)
                for layer in reports[0].layers
            },
            episode_returns=tuple(returns),
            saved_return=loaded.source.saved_return,
            notes=(*loaded.notes, *_unfaithful(loaded, returns)),
            settings=loaded.source.hyperparameters,
            is_off_policy=not agent_of(loaded.model).at_rollout_end,
        )


def fresh_report(model: BaseAlgorithm, report: DormancyReport, seed: int) -> DormancyReport:
    """Measure a fresh network of a model's policy on the observations of a report.

    :param model: the measured model. It does not change.
    :param report: its measurement
    :param seed: of the fresh network
    """
    networks = {layer.name: layer.network for layer in report.layers}
    agent = agent_of(model)
    with initial_weights_of(model, "fresh").built(seed) as policy:
        policy.to(model.device)
        return Meter(policy, report.wiring, networks).measure(
            lambda part: agent.forward(policy, part), report.batch, report.dormancy_threshold
        )


def to_frame(inspections: Iterable[Inspection | Failure]) -> "pandas.DataFrame":
    """Tabulate inspections: one row for each agent, seed and layer, and one for each failure.

    :param inspections: of any number of agents
    :raises MissingPackageError: without pandas
    """
    with needs("plots", "to_frame()"):
        import pandas  # here, because only this is worth a second of import time

    frame = pandas.DataFrame([row for inspection in inspections for row in inspection.rows()])
    # Failures have no numbers. Without this, pandas would turn integers into floats.
    return frame.astype({name: "Int64" for name in _INTEGERS if name in frame})


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines. The first column is left-aligned, all others are right-aligned.

    :param rows: rows of equal length
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _thresholds(given: float | None, loaded: LoadedAgent) -> tuple[float, ...]:
    """Return the thresholds to show: the requested one or that of the run, then the usual ones."""
    first = given if given is not None else _own_threshold(loaded.source.hyperparameters.get("callback"))
    first = DEFAULT_THRESHOLD if first is None else float(first)
    return (first, *(threshold for threshold in THRESHOLDS if threshold != first))


def _unfaithful(loaded: LoadedAgent, returns: Sequence[float]) -> list[str]:
    """Return a warning if the agent's return in a successor environment is far from its saved return."""
    saved = loaded.source.saved_return
    if saved is None or not returns or loaded.environment == loaded.source.environment:
        return []
    mean = sum(returns) / len(returns)
    if abs(mean - saved) <= abs(saved) / 2:
        return []
    return [f"its return is far from the saved one: {loaded.environment} may differ from where it was trained"]


def _own_threshold(callbacks: Any) -> float | None:
    """Return the dormancy threshold in the zoo's callback settings, or ``None``."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        for path, settings in callback.items() if isinstance(callback, Mapping) else ():
            threshold = settings.get("dormancy_threshold") if isinstance(settings, Mapping) else None
            if not str(path).startswith("sb3_redo.") or threshold is None:
                continue
            with suppress(TypeError, ValueError):
                return non_negative_number("dormancy_threshold", threshold)
    return None


def _activation(policy: nn.Module, wiring: Wiring, layer: str) -> str:
    """Return the name of a layer's activation, or an empty string."""
    functions = [call.name for call in wiring.calls if call.kind == "activation"]
    names = set()
    for site in wiring[layer].sites:
        if site.kind == "result":
            names.add(type(policy.get_submodule(site.name)).__name__)
        elif site.kind == "activation":
            names.add(functions[site.call])
    return " and ".join(sorted(names))


def _encodable(path: Path) -> str:
    """Return a path as text that any table can hold. Names on a disk may not be UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()


def _rows_alone(number: int) -> torch.Tensor:
    """Return a batch without values that keeps the number of observations."""
    return torch.empty(number, 0)


def _fraction(report: DormancyReport, threshold: float, layer: str | None) -> float:
    if layer is None:
        return report.fraction_at(threshold)
    (scores,) = (each.scores for each in report.layers if each.name == layer)
    return float((scores <= threshold).sum()) / len(scores)


def _mean_fraction(reports: Sequence[DormancyReport], threshold: float, layer: str | None) -> float:
    return sum(_fraction(report, threshold, layer) for report in reports) / len(reports)


def failed(path: Path, error: BaseException) -> Failure:
    """Return the failure of an agent that could not be inspected.

    :param path: of the agent
    :param error: the reason
    """
    return Failure(path, printable(one_line(error)), isinstance(error, ValueError))
