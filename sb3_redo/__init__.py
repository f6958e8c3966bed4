"""Measure and recycle dormant neurons in Stable-Baselines3 agents."""

from sb3_redo.callbacks import DormancyCallback as DormancyCallback
from sb3_redo.callbacks import ReDoCallback as ReDoCallback
from sb3_redo.models import measure_dormancy as measure_dormancy
from sb3_redo.models import recycle_dormant as recycle_dormant
from sb3_redo.wiring import trace_wiring as trace_wiring

__all__ = ["DormancyCallback", "ReDoCallback", "measure_dormancy", "recycle_dormant", "trace_wiring"]
