"""MEASURE: scores the neurons of every layer on one batch, and reports which are dormant."""

from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy, dormancy_scores, overlap

__all__ = ["DormancyReport", "LayerDormancy", "Meter", "dormancy_scores", "overlap"]
