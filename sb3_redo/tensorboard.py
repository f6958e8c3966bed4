"""Writes points at the step where they were measured, and a layout for TensorBoard."""

import logging
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.logger import (
    DISABLED,
    CSVOutputFormat,
    HumanOutputFormat,
    Image,
    JSONOutputFormat,
    KVWriter,
    Logger,
    SeqWriter,
    TensorBoardOutputFormat,
)
from torch import Tensor

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy, overlap, revived

_Totals = dict[str, tuple[float, Callable[[], bool]]]
"""Key to number, and whether it is still to be shown."""


def write_point(logger: Logger, values: Mapping[str, Any], num_timesteps: int) -> None:
    """Write values to every writer of a logger but the console now, at their own step.

    ``Logger.record`` keeps only the last value until SB3 dumps its log, every few episodes, and stamps it with the
    dump's step. The console is left out: its table cuts keys to 36 characters, and two equal keys stop the run.

    :param values: key to number, to a tensor for a histogram (not in CSV), or to an ``Image`` (in TensorBoard alone)
    :param num_timesteps: SB3's own x axis. CSV and JSON rows have it as ``time/total_timesteps``. Other writers get it
        as ``step``.
    """
    if logger.level == DISABLED:
        return
    for output in logger.output_formats:
        if not isinstance(output, KVWriter) or isinstance(output, HumanOutputFormat):
            continue
        row = dict(values)
        if isinstance(output, CSVOutputFormat):
            row = {key: value for key, value in row.items() if not isinstance(value, torch.Tensor)}
        if not isinstance(output, TensorBoardOutputFormat):
            row = {key: value for key, value in row.items() if not isinstance(value, Image)}
        if isinstance(output, (CSVOutputFormat, JSONOutputFormat)):
            row["time/total_timesteps"] = num_timesteps
        if row:
            output.write(row, dict.fromkeys(row, ("",)), num_timesteps)


def tell(logger: Logger, line: str) -> None:
    """Write a line to the consoles and text files of a logger. Without any, write to Python's logger ``sb3_redo``.

    The line appears where SB3's own tables do (``verbose=1``). Otherwise it appears if ``logging`` shows ``INFO``.
    """
    if any(isinstance(output, SeqWriter) for output in logger.output_formats):
        logger.info(line)
    else:
        logging.getLogger("sb3_redo").info(line)


def how_to_look(logger: Logger) -> str:
    """Return the command that shows a logger's points, after a semicolon. Empty without a TensorBoard log."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            return f"; tensorboard --logdir {shlex.quote(output.writer.log_dir)}"
    return ""


def write_totals(logger: Logger, values: Mapping[str, float], are_current: Callable[[], bool] = lambda: True) -> None:
    """Show values in all tables of a logger's consoles from now on, and nowhere else.

    ``Logger.record`` would pass them to every writer. Writers that are not SB3's may ignore what they should exclude.

    :param values: key to number; they replace those shown before
    :param are_current: called at each table. The values are dropped once it returns ``False``.
    """
    for output in logger.output_formats:
        if isinstance(output, HumanOutputFormat):
            if not hasattr(output, "totals_of_redo"):
                totals: _Totals = {}
                vars(output).update(totals_of_redo=totals, write=partial(_write_with, totals, output.write))
            vars(output)["totals_of_redo"].update({key: (value, are_current) for key, value in values.items()})


def _write_with(
    totals: _Totals,
    write: Callable[..., None],
    key_values: Mapping[str, Any],
    key_excluded: Mapping[str, tuple[str, ...]],
    step: int = 0,
) -> None:
    """Write a table that also shows the current totals."""
    current = {key: (value, is_current) for key, (value, is_current) in totals.items() if is_current()}
    totals.clear()
    totals.update(current)
    shown = {**key_values, **{key: value for key, (value, _) in totals.items()}}
    write(shown, {**key_excluded, **dict.fromkeys(totals, ("",))}, step)


def dormancy_values(
    report: DormancyReport, thresholds: Iterable[float], *, log_layers: bool, log_histograms: bool
) -> dict[str, Any]:
    """Return the contents of a report under their keys.

    :param report: the measurement
    :param thresholds: further thresholds for the pooled fraction
    :param log_layers: whether to include every layer's fraction
    :param log_histograms: whether to include every layer's scores, [neurons]
    """
    values: dict[str, Any] = {"dormancy/fraction": report.dormant_fraction}
    values |= {f"dormancy/{network}": report.network_fraction(network) for network in report.networks}
    values |= {f"dormancy_thresholds/{threshold}": report.fraction_at(threshold) for threshold in thresholds}
    if log_layers:
        values |= {f"dormancy_layers/{layer.name}": layer.dormant_fraction for layer in report.layers}
    if log_histograms:
        values |= {f"dormancy_scores/{layer.name}": layer.scores for layer in report.layers}
    return values


def persistence_values(
    layers: Sequence[LayerDormancy], before: Sequence[Tensor], at_first: Sequence[Tensor], *, log_layers: bool
) -> dict[str, float]:
    """Return overlaps and revived shares of neurons that were dormant, by key. Undefined values are left out.

    :param layers: the layers of a measurement
    :param before: layer name to the mask of neurons dormant at the measurement before, bool [neurons]
    :param at_first: the same for the first measurement
    :param log_layers: whether to include every layer's share of revived neurons
    """
    dormant = [layer.dormant for layer in layers]
    values = {
        "dormancy/overlap": overlap(dormant, before),
        "dormancy/overlap_first": overlap(dormant, at_first),
        "dormancy/revived": revived(dormant, before),
    }
    for network in dict.fromkeys(layer.network for layer in layers):
        its = [number for number, layer in enumerate(layers) if layer.network == network]
        values[f"dormancy_revived/{network}"] = revived([dormant[i] for i in its], [before[i] for i in its])
    if log_layers:
        for layer, was in zip(layers, before, strict=True):
            values[f"dormancy_revived_layers/{layer.name}"] = revived([layer.dormant], [was])
    return {key: value for key, value in values.items() if value is not None}


def numbered(values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return values under keys that tell a model's callbacks apart: unchanged for the first, then ``dormancy_2/…``."""
    return {key if number == 1 else key.replace("/", f"_{number}/", 1): value for key, value in values.items()}


def write_layout(logger: Logger, networks: Mapping[str, str], *, log_layers: bool, recycles: bool) -> None:
    """Set up TensorBoard's Custom Scalars tab: all networks in one chart, the layers of each in another.

    A single network, or a network's single layer, is left out: its curve equals that of the whole.

    :param networks: layer name to network name
    :param recycles: whether neurons are recycled, and not only measured
    """
    names = tuple(dict.fromkeys(networks.values()))
    each = [f"dormancy/{name}" for name in names] if len(names) > 1 else []
    charts = {
        "episode return": ["Multiline", _exactly("rollout/ep_rew_mean")],
        "dormant fraction": ["Multiline", _exactly("dormancy/fraction", *each)],
    }
    for name in names if log_layers else ():
        layers = [f"dormancy_layers/{layer}" for layer, network in networks.items() if network == name]
        if len(layers) > 1:
            charts[f"dormant fraction: layers of {name}"] = ["Multiline", _exactly(*layers)]
    if recycles:
        charts["neurons recycled"] = ["Multiline", _exactly("redo/recycled")]
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.add_custom_scalars({"dormancy": charts})


def _exactly(*keys: str) -> list[str]:
    """Return regular expressions that match just these keys, as TensorBoard's charts want them."""
    return [f"^{re.escape(key)}$" for key in keys]
