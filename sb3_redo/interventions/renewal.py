"""Callbacks that give neurons or whole layers other weights than training's steps do."""

from collections.abc import Iterable

from stable_baselines3.common.callbacks import BaseCallback

from sb3_redo.companions import callbacks_in
from sb3_redo.interventions.continual_backprop import ContinualBackpropCallback
from sb3_redo.interventions.injection import PlasticityInjectionCallback
from sb3_redo.interventions.periodic import PeriodicCallback
from sb3_redo.redo import ReDoCallback

RENEWING = (ReDoCallback, ContinualBackpropCallback, PeriodicCallback, PlasticityInjectionCallback)


def renewing_in(root: BaseCallback | None) -> Iterable[BaseCallback]:
    """Those among a callback and all that it holds."""
    return (callback for callback in callbacks_in(root) if isinstance(callback, RENEWING))
