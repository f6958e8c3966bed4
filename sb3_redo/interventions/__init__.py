"""What ReDo is compared with: callbacks that change the network while it trains."""

from sb3_redo.interventions.perturbation import ShrinkAndPerturbCallback
from sb3_redo.interventions.resets import ResetCallback
from sb3_redo.interventions.scheduled import ScheduledReDoCallback

__all__ = ["ResetCallback", "ScheduledReDoCallback", "ShrinkAndPerturbCallback"]
