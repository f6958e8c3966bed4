"""The cost of one measurement, in time and memory, beside a forward pass of the same networks on the same batch."""

import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.profiler import ProfilerActivity, profile

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.buffers import sample_batch
from sb3_redo.sb3.model import initial_weights_of, meter_of
from sb3_redo.sb3.seeds import torch_generator


@dataclass(frozen=True)
class Line:
    """One figure, the range it was seen in, and the bar it should not exceed, if there is one."""

    subject: str
    quantity: str
    value: float
    low: float
    high: float
    bar: float | None
    note: str

    def row(self) -> tuple[str, ...]:
        """The cells of a table."""
        figures = f"{self.value:.4f}", f"{self.low:.4f} to {self.high:.4f}"
        bar = ("", "") if self.bar is None else (f"{self.bar:g}", "pass" if self.value <= self.bar else "FAIL")
        return self.subject, self.quantity, *figures, *bar, self.note


def table(lines: list[Line]) -> str:
    rows = [("subject", "quantity", "value", "range", "bar", "", ""), *(line.row() for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def tell(lines: list[Line], file: Path | None) -> None:
    """Print lines as a table, and write them as JSON into a file, or behind the table without one."""
    print(table(lines))
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cpu": platform.machine()}
    text = json.dumps({"machine": machine, "lines": [asdict(line) for line in lines]}, indent=2)
    if file is None:
        print(text)
    else:
        file.write_text(text + "\n")


class Rig:
    """Trained networks and a batch to run them on."""

    def __init__(self, model: BaseAlgorithm, batch_size: int, dormancy_threshold: float = 0.1):
        self.dormancy_threshold = dormancy_threshold
        self.policy, self.agent = model.policy, agent_of(model)
        self.forward = partial(self.agent.forward, self.policy)
        self.batch = sample_batch(model, batch_size, (0, 0))
        self.meter = meter_of(model, self.batch)
        self.initial_weights = initial_weights_of(model)
        states = [state for optimizer in self.agent.optimizers for state in optimizer.state.values()]
        tensors = [*self.policy.parameters(), *(value for state in states for value in state.values())]
        self.before = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.recycled: list[int] = []

    def bare(self) -> Any:
        with torch.no_grad():
            return self.forward(self.batch)

    def measure(self) -> DormancyReport:
        return self.meter.measure(self.forward, self.batch, self.dormancy_threshold)

    def measure_and_recycle(self) -> None:
        """As ``ReDoCallback()`` does it."""
        generator, report = torch_generator((0, len(self.recycled))), self.measure()
        neurons = report.dormant_neurons()
        found = (report.wiring, neurons, self.agent.optimizers, self.initial_weights, generator, Surgery())
        self.recycled.append(recycle(self.policy, *found).recycled)

    def restore(self, *, training: bool) -> None:
        """As training left it, in the mode in which a callback meets the policy or in evaluation mode."""
        with torch.no_grad():
            for tensor, before in self.before:
                tensor.copy_(before)
        self.policy.set_training_mode(training)

    def compare(self, subject: str, call: Callable[[], Any], seconds: float, bar: float) -> Line:
        """Median time of a call over that of a bare forward pass, in turns; the range is the pairs' middle half.

        Time is that of this thread alone, which other programs on the machine disturb less than they do a clock.
        """
        ours: list[float] = []
        bare: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(bare) < 20:
            for is_ours in sorted((True, False), reverse=len(bare) % 2 == 0):
                self.restore(training=is_ours)
                begin = time.thread_time()
                (call if is_ours else self.bare)()
                (ours if is_ours else bare).append(time.thread_time() - begin)
        low, _, high = quantiles([one / other for one, other in zip(ours, bare, strict=True)])
        note = f"{median(ours) * 1e3:.3f} / {median(bare) * 1e3:.3f} ms, {len(bare)} times"
        if self.recycled:
            note += f", {'-'.join(map(str, sorted(set(self.recycled))))} neurons recycled"
        return Line(subject, call.__name__.replace("_", " "), median(ours) / median(bare), low, high, bar, note)

    def memory(self, subject: str) -> Line:
        """Peak memory of a measurement beyond that of a bare forward pass, in sizes of its largest layer's output."""
        sizes: list[int] = []
        layers = [self.policy.get_submodule(layer.name) for layer in self.meter.layers]
        handles = [layer.register_forward_hook(lambda _, __, out: sizes.append(out.nbytes)) for layer in layers]
        self.measure()
        for handle in handles:
            handle.remove()
        bare, ours = (peak_bytes(call, self.policy.device) for call in (self.bare, self.measure))
        extra, device = (ours - bare) / max(sizes), self.policy.device.type
        note = f"{ours:,} - {bare:,} bytes, largest layer {max(sizes):,}"
        return Line(subject, f"peak memory, {device}", extra, extra, extra, 1.0, note)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of tensors alive at a time while a call runs, beyond those alive before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    sizes: list[int] = [event["args"]["Bytes"] for event in sorted(events, key=itemgetter("ts"))]
    return max(accumulate(sizes, initial=0))
