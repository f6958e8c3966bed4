"""Callbacks that examine networks while a model trains, and leave the training as it is."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback, is_over
from sb3_redo.plasticity.agent_networks import EXAMINED, networks_of
from sb3_redo.plasticity.network import Network
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.buffers import available_batch_size, sample_batch, stored_observations
from sb3_redo.sb3.model import whole_batch
from sb3_redo.tensorboard import numbered, write_point
from sb3_redo.validation import flag, listed, non_negative_integer, one_of, optional_integer, positive_integer


class ExaminingCallback(GradientStepCallback):
    """Examines networks on stored observations, first when training is about to begin and then after every
    ``measuring_period`` gradient steps; see its subclasses.

    On-policy algorithms are examined on the rollout just collected, at the end of the first one after each period.

    :param measuring_period: in gradient steps
    :param batch_size: observations per measurement; all of a rollout that has fewer
    :param networks: names of the networks to examine; all of them if not given
    :param seed: of everything that is drawn; the model's own seed if not given
    """

    _networks: dict[str, Network]

    def __init__(
        self,
        measuring_period: int,
        batch_size: int,
        networks: Sequence[str] | None,
        seed: int | None,
        verbose: int,
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.measuring_period = positive_integer("measuring_period", measuring_period)
        self.batch_size = positive_integer("batch_size", batch_size)
        names = None if networks is None else listed("networks", networks)
        self.networks = names and tuple(one_of("networks", name, EXAMINED) for name in names)
        if names == []:
            raise ValueError("networks must name at least one network, got an empty list; leave it out for all")
        self.seed = optional_integer("seed", seed)

    def _identity(self) -> str:
        settings = (self.measuring_period, self.batch_size, self.networks, self.seed, *self._further_settings())
        return " ".join(map(str, (type(self).__name__, *settings)))

    def _further_settings(self) -> tuple[Any, ...]:
        """Those that a subclass has besides."""
        return ()

    def _examine(self, batch: Batch, gradient_step: int) -> dict[str, Any]:
        """What to log, by key; numbers that are not finite are left out.

        :param batch: drawn from the buffer for this measurement
        """
        raise NotImplementedError

    def _prepare(self) -> None:
        self._batch_size = available_batch_size(
            self.model, self.batch_size, "networks are examined on {}, on which ranks are lower"
        )
        self._read_networks()
        self._seed = (self.model.seed or 0) if self.seed is None else self.seed
        self._is_waiting = not self._memory.kept("measured")
        self._number = self._number_among(callbacks_in(self.locals.get("callback")))

    def _number_among(self, callbacks: Iterable[BaseCallback]) -> int:
        """What tells its keys from those of callbacks before it, see :func:`~sb3_redo.tensorboard.numbered`."""
        numbers: dict[ExaminingCallback, int] = {}
        for each in callbacks:
            if isinstance(each, ExaminingCallback):
                rivals = [numbers[other] for other in numbers if each._writes_over(other)]
                numbers[each] = 1 + max(rivals, default=0)
        return numbers.get(self, 1)

    def _writes_over(self, other: "ExaminingCallback") -> bool:
        return type(other) is type(self) or not self._shared_quantities().isdisjoint(other._shared_quantities())

    def _shared_quantities(self) -> frozenset[str]:
        """Those of the quantities that it logs that callbacks of other classes log too."""
        return frozenset()

    def _read_networks(self) -> None:
        """Find the networks, and whatever goes with each of them."""
        self._networks = networks_of(self.model, whole_batch(self.model, self.model._last_obs), self.networks)

    def rewire(self) -> None:
        if self._clock is not None:
            self._read_networks()

    def _before_training(self, gradient_step: int) -> None:
        if not self._is_waiting:
            super()._before_training(gradient_step)
            return
        self._examine_and_log(gradient_step)
        if self._agent.at_rollout_end:
            self._memory.looked_at = gradient_step

    def _after(self, before: int, gradient_step: int) -> None:
        if is_over(self.measuring_period, before, gradient_step):
            self._examine_and_log(gradient_step)

    def _examine_and_log(self, gradient_step: int) -> None:
        if stored_observations(self.model) < self._batch_size:
            return
        self._is_waiting = False
        self._memory.keep("measured", True)
        batch = sample_batch(self.model, self._batch_size, (self._seed, gradient_step))
        try:
            values = self._examine(batch, gradient_step)
        except BaseException:
            self._stop()
            raise
        self._log(values, gradient_step)

    def _log(self, values: dict[str, Any], gradient_step: int) -> None:
        self._write({**values, "plasticity/gradient_step": gradient_step})

    def _write(self, values: dict[str, Any]) -> None:
        off = sorted(key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value))
        if off:
            message = f"{', '.join(off)}: NaN or infinite after {self.model.num_timesteps} environment steps, left out"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        finite = {key: value for key, value in values.items() if key not in off}
        write_point(self.logger, numbered(finite, self._number), self.model.num_timesteps)

    def _draws_pictures(self, wanted: bool) -> bool:
        """Whether there is a TensorBoard file for pictures, and something to draw them with.

        :raises RuntimeError: when there is no matplotlib
        """
        if not flag("log_images", wanted):
            return False
        if not any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats):
            return False
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise RuntimeError(
                "log_images=True draws with matplotlib, which is not installed: pip install 'sb3-redo[plots]', or set "
                "log_images=False"
            ) from None
        return True
