"""Instruments that tell whether a network can still learn, by hand and as callbacks."""

from sb3_redo.plasticity.agent_networks import networks_of
from sb3_redo.plasticity.callbacks import PlasticityCallback
from sb3_redo.plasticity.features import feature_matrices, feature_norm, feature_ranks
from sb3_redo.plasticity.network import Network, read_network
from sb3_redo.plasticity.ranks import Ranks, ranks_of
from sb3_redo.plasticity.units import LayerUnits, units_of
from sb3_redo.plasticity.weights import distance_from, update_ratio, weight_norm, weight_ranks

__all__ = [
    "LayerUnits",
    "Network",
    "PlasticityCallback",
    "Ranks",
    "distance_from",
    "feature_matrices",
    "feature_norm",
    "feature_ranks",
    "networks_of",
    "ranks_of",
    "read_network",
    "units_of",
    "update_ratio",
    "weight_norm",
    "weight_ranks",
]
