"""The base of callbacks that examine networks while a model trains, without changing training."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.measurer import Sampler
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.plasticity.agent_networks import EXAMINED, networks_of
from sb3_redo.plasticity.network import Network
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.model import last_observations
from sb3_redo.tensorboard import numbered, write_point
from sb3_redo.validation import non_negative_integer, optional_integer, positive_integer, some_of


class ExaminingCallback(GradientStepCallback):
    """Examines networks on stored observations, when training begins and after every ``measuring_period``.

    On-policy algorithms are examined on the rollout just collected, at the end of the first one after each period.

    :param measuring_period: in gradient steps
    :param batch_size: observations per measurement. If a rollout has fewer, all of it is used.
    :param networks: names of the networks to examine, for instance ``["critic"]``. Default: all that fit.
    :param seed: of all draws. Default: the model's seed.
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    only_measures = True

    settings_in_key: ClassVar[tuple[str, ...]] = ("measuring_period", "batch_size", "networks", "seed")

    shared_quantities: frozenset[str] = frozenset()
    """Quantities that callbacks of other classes log, too."""

    networks_examined: dict[str, Network]
    """The networks by name. Set by :meth:`prepare`."""

    def __init__(
        self,
        measuring_period: int,
        batch_size: int,
        networks: Sequence[str] | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.measuring_period = positive_integer("measuring_period", measuring_period)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.networks = some_of("networks", networks, EXAMINED)
        self.seed = optional_integer("seed", seed)

    def examine(self, batch: Batch, gradient_step: int) -> dict[str, Any]:
        """Return the values to log by key. Numbers that are not finite are left out.

        :param batch: drawn from the buffer for this measurement
        """
        raise NotImplementedError

    def prepare(self) -> None:
        told, is_waiting = "networks are examined on {}, on which ranks are lower", not self.memory.kept("measured")
        self.sampler = Sampler(self.model, self.batch_size, self.seed, told, is_waiting=is_waiting)
        self.rewire()
        self._number = self._number_among(callbacks_in(self.locals.get("callback")))

    def _number_among(self, callbacks: Iterable[BaseCallback]) -> int:
        """Return the number that its keys carry after earlier callbacks, see :func:`~sb3_redo.tensorboard.numbered`."""
        numbers: dict[ExaminingCallback, int] = {}
        for each in callbacks:
            if isinstance(each, ExaminingCallback):
                rivals = [numbers[other] for other in numbers if each._writes_over(other)]
                numbers[each] = 1 + max(rivals, default=0)
        return numbers.get(self, 1)

    def _writes_over(self, other: "ExaminingCallback") -> bool:
        return type(other) is type(self) or bool(self.shared_quantities & other.shared_quantities)

    def rewire(self) -> None:
        """Find the networks, and prepare each of them."""
        self.networks_examined = networks_of(self.model, last_observations(self.model), self.networks)

    def before_training(self, gradient_step: int) -> None:
        if self.sampler.is_waiting:
            self._examine_and_log(gradient_step)
            self.pass_over(gradient_step)

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if is_due(self.measuring_period, before, gradient_step):
            self._examine_and_log(gradient_step)

    def _examine_and_log(self, gradient_step: int) -> None:
        batch = self.sampler.draw(gradient_step)
        if batch is not None:
            self.memory.keep("measured", True)
            self.write({**self.examine(batch, gradient_step), "plasticity/gradient_step": gradient_step})

    def write(self, values: dict[str, Any]) -> None:
        off = sorted(key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value))
        if off:
            message = f"{', '.join(off)}: NaN or infinite after {self.model.num_timesteps} environment steps, left out"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        finite = {key: value for key, value in values.items() if key not in off}
        write_point(self.logger, numbered(finite, self._number), self.model.num_timesteps)
