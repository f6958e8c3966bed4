"""Gradients of single samples and the curvature of a loss as callbacks."""

from typing import Any, ClassVar

import torch
from stable_baselines3.common.logger import TensorBoardOutputFormat

from sb3_redo.plasticity.curvature import Spectrum, hessian_spectrum
from sb3_redo.plasticity.gradients import GradientCovariance, gradient_covariance, gradient_norm
from sb3_redo.plasticity.measuring import ExaminingCallback
from sb3_redo.plasticity.network import Network
from sb3_redo.plasticity.objectives import Objective, has_td_loss, probe_loss, td_loss
from sb3_redo.plasticity.pictures import cosine_picture, density_picture
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.validation import flag, needs, one_of, positive_integer

LOSSES = ("td", "probe")

OF_COVARIANCE = {"gradient_negative_share": "negative_share", "gradient_mean_cosine": "mean_cosine"}
"""Quantity to the attribute of :class:`~sb3_redo.plasticity.GradientCovariance`."""

OF_SPECTRUM = {"sharpness": "largest", "hessian_smallest": "smallest", "hessian_trace": "trace"}
"""Quantity to the attribute of :class:`~sb3_redo.plasticity.Spectrum`."""


def quantities_of(found: Spectrum | GradientCovariance, attributes: dict[str, str]) -> dict[str, Any]:
    """Return the results by quantity."""
    return {quantity: getattr(found, attribute) for quantity, attribute in attributes.items()}


class _LossCallback(ExaminingCallback):
    """Examines a loss.

    :param loss: ``"td"``, the loss that trains the algorithm's values, or ``"probe"``, that of Lyle et al., which every
        network has
    :param log_images: whether to draw a picture for TensorBoard
    """

    settings_in_key: ClassVar[tuple[str, ...]] = (*ExaminingCallback.settings_in_key, "loss")

    def __init__(self, measuring_period: int, batch_size: int, loss: str, *, log_images: bool = True, **settings: Any):
        super().__init__(measuring_period, batch_size, **settings)
        self.loss = one_of("loss", loss, LOSSES)
        self.log_images = flag("log_images", log_images)

    def prepare(self) -> None:
        super().prepare()
        outputs = self.logger.output_formats if self.log_images else []
        self._draws = any(isinstance(output, TensorBoardOutputFormat) for output in outputs)
        try:
            if self._draws:
                with needs("plots", "log_images=True", "set log_images=False"):
                    import matplotlib  # noqa: F401
                    import sklearn  # noqa: F401
        except ImportError as error:  # no ValueError, which the zoo ignores during a trial
            raise RuntimeError(str(error)) from None

    def rewire(self) -> None:
        super().rewire()
        if self.loss == "probe":
            return
        known = {name: network for name, network in self.networks_examined.items() if has_td_loss(self.model, name)}
        unknown = [name for name in self.networks_examined if name not in known]
        if not known or (self.networks and unknown):
            raise RuntimeError(
                f"loss='td', but no temporal-difference loss of {type(self.model).__name__}'s {unknown[0]} is known "
                "here: take loss='probe', or name other networks"
            )
        self.networks_examined = known

    def examine(self, batch: Batch, gradient_step: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, network in self.networks_examined.items():
            seed = (self.sampler.seed, gradient_step)
            number = int(torch.randint(2**62, (), generator=torch_generator(seed)))
            if self.loss == "probe":
                objective = probe_loss(network, batch, number)
            else:
                objective = td_loss(self.model, name, self.sampler.batch_size, seed)
            found = self._of_loss(network, objective, number)
            values |= {f"plasticity/{quantity}/{name}": value for quantity, value in found.items()}
        return values

    def _of_loss(self, network: Network, objective: Objective, seed: int) -> dict[str, Any]:
        """Return the values to log for a network's loss, by quantity."""
        raise NotImplementedError


class GradientCovarianceCallback(_LossCallback):
    """Logs how the gradients of single samples agree while a model trains. Training is bit for bit the same.

    :param measuring_period: in gradient steps
    :param batch_size: samples; all pairs are compared. The paper uses 512. If their gradients exceed 512 MiB, some are
        computed more than once.
    :param loss: ``"td"``, the loss that trains the algorithm's values (DQN, Double DQN, DrQ, CategoricalDQN, QR-DQN,
        DDPG, TD3, SAC, TQC), or ``"probe"``, which every network has. Gradients of ``"probe"`` have random signs.
    :param settings: ``log_images``, whether to draw the matrix of cosines for TensorBoard, its rows in clusters;
        ``networks``, ``seed`` and ``verbose``, see :class:`~sb3_redo.plasticity.measuring.ExaminingCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    shared_quantities = frozenset(OF_COVARIANCE)

    def __init__(self, measuring_period: int = 50_000, batch_size: int = 64, loss: str = "td", **settings: Any):
        super().__init__(measuring_period, batch_size, loss, **settings)

    def _of_loss(self, network: Network, objective: Objective, seed: int) -> dict[str, Any]:
        covariance = gradient_covariance(network, objective)
        values: dict[str, Any] = {
            "loss_gradient_norm": gradient_norm(network, objective),
            **quantities_of(covariance, OF_COVARIANCE),
            "gradient_effective_rank": covariance.effective_rank,
        }
        cosines = covariance.cosines
        if self._draws and bool(torch.isfinite(cosines).all()):
            values["gradient_cosines"] = cosine_picture(cosines, network.name)
        return values


class CurvatureCallback(_LossCallback):
    """Logs a loss's sharpness and its Hessian's eigenvalues while a model trains. Training is bit for bit the same.

    :param measuring_period: in gradient steps
    :param batch_size: number of samples in the mean loss
    :param steps: Lanczos steps. Each needs memory for a copy of the network's parameters.
    :param vectors: number of random start vectors
    :param loss: ``"probe"``, that of Lyle et al., or ``"td"``, see :class:`GradientCovarianceCallback`
    :param settings: ``log_images``, whether to draw the density for TensorBoard; others as for
        :class:`GradientCovarianceCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    settings_in_key = (*_LossCallback.settings_in_key, "steps", "vectors")

    shared_quantities = frozenset(OF_SPECTRUM)

    def __init__(
        self,
        measuring_period: int = 50_000,
        batch_size: int = 128,
        steps: int = 30,
        vectors: int = 1,
        loss: str = "probe",
        **settings: Any,
    ):
        super().__init__(measuring_period, batch_size, loss, **settings)
        self.steps = positive_integer("steps", steps)
        self.vectors = positive_integer("vectors", vectors)

    def _of_loss(self, network: Network, objective: Objective, seed: int) -> dict[str, Any]:
        found = hessian_spectrum(network, objective, steps=self.steps, vectors=self.vectors, seed=seed)
        values = quantities_of(found, OF_SPECTRUM)
        if self._draws and found.is_finite:
            values["hessian_density"] = density_picture(found, network.name)
        return values
