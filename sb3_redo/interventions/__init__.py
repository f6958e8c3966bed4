"""Callbacks to compare with ReDo. They change the network or its training while a model trains.

Experimental: names may change in any release.
"""

from sb3_redo.interventions.adaptive_replay_ratio import AdaptiveReplayRatioCallback
from sb3_redo.interventions.continual_backprop import ContinualBackpropCallback
from sb3_redo.interventions.fire import FireCallback
from sb3_redo.interventions.gradients import GradientReDoCallback
from sb3_redo.interventions.injection import PlasticityInjectionCallback
from sb3_redo.interventions.optimizer_resets import OptimizerResetCallback
from sb3_redo.interventions.perturbation import ShrinkAndPerturbCallback
from sb3_redo.interventions.pruning import PruningCallback
from sb3_redo.interventions.regularisers import (
    NormProjectionCallback,
    ParsevalCallback,
    RegenerativeCallback,
    WeightClippingCallback,
)
from sb3_redo.interventions.resets import ResetCallback
from sb3_redo.interventions.scheduled import ScheduledReDoCallback

__all__ = [
    "AdaptiveReplayRatioCallback",
    "ContinualBackpropCallback",
    "FireCallback",
    "GradientReDoCallback",
    "NormProjectionCallback",
    "OptimizerResetCallback",
    "ParsevalCallback",
    "PlasticityInjectionCallback",
    "PruningCallback",
    "RegenerativeCallback",
    "ResetCallback",
    "ScheduledReDoCallback",
    "ShrinkAndPerturbCallback",
    "WeightClippingCallback",
]
