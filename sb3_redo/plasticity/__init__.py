"""Instruments that tell whether a network can still learn, as functions and callbacks.

Experimental: names may change in any release.
"""

from sb3_redo.plasticity.agent_networks import networks_of
from sb3_redo.plasticity.brownian_motion import BrownianMotionCallback
from sb3_redo.plasticity.callbacks import PlasticityCallback
from sb3_redo.plasticity.costly import CurvatureCallback, GradientCovarianceCallback
from sb3_redo.plasticity.curvature import Spectrum, hessian_product, hessian_spectrum, sharpness
from sb3_redo.plasticity.features import feature_matrices, feature_norm, feature_ranks
from sb3_redo.plasticity.gradients import (
    GradientCovariance,
    gradient,
    gradient_covariance,
    gradient_norm,
    per_sample_gradients,
)
from sb3_redo.plasticity.network import Network, read_network
from sb3_redo.plasticity.objectives import Objective, probe_loss, td_loss
from sb3_redo.plasticity.probe_task import ProbeResult, probe, probe_targets
from sb3_redo.plasticity.probing import ProbeTaskCallback
from sb3_redo.plasticity.ranks import Ranks, ranks_of
from sb3_redo.plasticity.units import LayerUnits, units_of
from sb3_redo.plasticity.weights import distance_from, update_ratio, weight_norm, weight_ranks

__all__ = [
    "BrownianMotionCallback",
    "CurvatureCallback",
    "GradientCovariance",
    "GradientCovarianceCallback",
    "LayerUnits",
    "Network",
    "Objective",
    "PlasticityCallback",
    "ProbeResult",
    "ProbeTaskCallback",
    "Ranks",
    "Spectrum",
    "distance_from",
    "feature_matrices",
    "feature_norm",
    "feature_ranks",
    "gradient",
    "gradient_covariance",
    "gradient_norm",
    "hessian_product",
    "hessian_spectrum",
    "networks_of",
    "per_sample_gradients",
    "probe",
    "probe_loss",
    "probe_targets",
    "ranks_of",
    "read_network",
    "sharpness",
    "td_loss",
    "units_of",
    "update_ratio",
    "weight_norm",
    "weight_ranks",
]
