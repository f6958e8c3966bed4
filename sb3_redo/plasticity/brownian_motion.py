"""Compares a network with a twin that is moved at random, equally far (Lyle et al. 2023, section 4.2)."""

import copy
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.forward.contexts import is_compiled
from sb3_redo.interventions.pruning import PruningCallback
from sb3_redo.interventions.regularisers import NormProjectionCallback, WeightClippingCallback
from sb3_redo.networks.categorical import CategoricalQNetwork
from sb3_redo.plasticity.costly import OF_COVARIANCE, OF_SPECTRUM, quantities_of
from sb3_redo.plasticity.curvature import hessian_spectrum
from sb3_redo.plasticity.gradients import gradient_covariance
from sb3_redo.plasticity.measuring import ExaminingCallback
from sb3_redo.plasticity.network import Network
from sb3_redo.plasticity.objectives import has_td_loss, probe_loss, td_loss
from sb3_redo.plasticity.weights import distance_from, norm_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.memory import Memory
from sb3_redo.sb3.model import is_trained
from sb3_redo.sb3.parameters import initial_parameters_of
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.validation import positive_integer

_NETWORK = "q_net"
# Callbacks that change weights outside optimizer steps without renewing them. A penalty only changes gradients, which
# is part of a step.
_MOVING = (PruningCallback, WeightClippingCallback, NormProjectionCallback)


class Twin(nn.Module):
    """A copy of a policy's value network and of its target network, under the same names.

    :param policy: of DQN
    """

    def __init__(self, policy: Any):
        super().__init__()
        # Copied together, so that the copies share the same modules as the originals.
        self.q_net, self.q_net_target = copy.deepcopy((policy.q_net, policy.q_net_target))

    def wander(self, names: list[str], length: float, generator: torch.Generator) -> None:
        """Add Gaussian noise to parameters of the value network, in place.

        :param names: names of the parameters
        :param length: L2 norm of the noise over all parameters
        :param generator: a CPU generator
        """
        noise = {name: torch.randn(self.get_parameter(name).shape, generator=generator) for name in names}
        scale = length / norm_of(noise)
        with torch.no_grad():
            for name, values in noise.items():
                parameter = self.get_parameter(name)
                parameter.add_(values.to(parameter), alpha=scale)


class BrownianMotionCallback(ExaminingCallback):
    """Logs how curvature and gradient agreement change during training, beside a twin that is moved at random.

    See Lyle et al. 2023, section 4.2. Training is bit for bit the same as without this callback.

    The twin begins as the same network. After each optimizer step, Gaussian noise is added to it. The noise's L2 norm
    over all trained parameters equals that of the step. The twin's temporal-difference targets come from its own target
    network, which is updated when DQN's is; the paper leaves this open. Both networks are examined on the same
    observations and transitions. The twin is saved with the model.

    Logs for ``q_net`` and ``q_net_twin`` ``plasticity/…``: ``sharpness``, ``hessian_smallest`` and ``hessian_trace`` of
    the probe loss, ``gradient_negative_share`` and ``gradient_mean_cosine`` of the temporal-difference loss, and
    ``distance`` from where both began. DQN, Double DQN, DrQ and CategoricalDQN are supported.

    :param measuring_period: in gradient steps. The paper measures after target updates, every 5,000.
    :param batch_size: observations and transitions per measurement. The paper uses 512.
    :param steps: Lanczos steps. Each needs memory for a copy of the network's parameters.
    :param vectors: number of random start vectors
    :param seed: of all draws. Default: the model's seed.
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    settings_in_key = (*ExaminingCallback.settings_in_key, "steps", "vectors")

    shared_quantities = frozenset({*OF_SPECTRUM, *OF_COVARIANCE, "distance"})

    def __init__(
        self,
        measuring_period: int = 50_000,
        batch_size: int = 128,
        steps: int = 30,
        vectors: int = 1,
        seed: int | None = None,
        verbose: int = 0,
    ):
        super().__init__(measuring_period, batch_size, seed=seed, verbose=verbose)
        self.steps = positive_integer("steps", steps)
        self.vectors = positive_integer("vectors", vectors)

    def prepare(self) -> None:
        self._refuse_what_has_no_twin()
        self._refuse_companions()
        super().prepare()
        # The memory is not kept per settings: callbacks with other settings continue with the same twin.
        self._ours = Memory(self.model, type(self).__name__)
        self._kept = self._ours.tensors("twin")
        if not self._kept and is_trained(self.model):
            name = type(self).__name__
            raise RuntimeError(f"this model was trained without {name}: its twin would have to begin where it began")
        self._initial = initial_parameters_of(self.model)
        self._twin = Twin(self.model.policy)
        if self._kept:
            self._twin.load_state_dict(self._kept)
        else:
            self._ours.keep("calls", self._calls)
        self.store()
        network = self.networks_examined[_NETWORK]
        self._before = {name: torch.empty_like(parameter) for name, parameter in network.parameters.items()}
        parameters = {name: self._twin.get_parameter(name) for name in network.parameters}
        assert all(isinstance(parameter, nn.Parameter) for parameter in parameters.values())
        self._twin_network = replace(network, name=f"{_NETWORK}_twin", module=self._twin, parameters=parameters)
        self.keep_hooks(StepHooks(self.agent.clock, before=self._before_step))

    def _refuse_what_has_no_twin(self) -> None:
        model, name = self.model, type(self.model).__name__
        if not isinstance(model, DQN) or not has_td_loss(model, _NETWORK):
            raise RuntimeError(
                f"{type(self).__name__} supports DQN, Double DQN, DrQ and CategoricalDQN, but not {name}: its "
                "temporal-difference loss is not known"
            )
        if is_compiled(model.policy.modules()):
            raise RuntimeError("a compiled network cannot be copied as it is: do not compile it")
        fixed = {"centres"} if isinstance(model.q_net, CategoricalQNetwork) else set()
        buffers = model.policy.q_net.named_buffers()
        moving = [path for path, buffer in buffers if path not in fixed and buffer.is_floating_point()]
        if moving:
            raise RuntimeError(
                f"training changes {_NETWORK}.{moving[0]} in its forward passes, and the twin, which is not trained, "
                "would not follow: use a network without batch or spectral normalisation"
            )

    def _refuse_companions(self) -> None:
        for other in callbacks_in(self.locals["callback"]):
            if isinstance(other, _MOVING) or getattr(other, "renews", False):
                raise RuntimeError(
                    f"{type(other).__name__} changes the network besides its optimizer's steps, and the twin of "
                    f"{type(self).__name__} would not follow: keep one of them"
                )
            if isinstance(other, BrownianMotionCallback) and other is not self:
                raise RuntimeError(f"two {type(self).__name__}s would move the same twin: keep one of them")

    @property
    def _calls(self) -> int:
        """DQN's count of environment steps, from which it decides when to update its target network."""
        model: Any = self.model
        return int(model._n_calls)

    def _catch_up(self) -> None:
        """Update the twin's target network as often as DQN has since the last call."""
        # DQN updates it while it collects experience, when neither network changes. So updating later is the same.
        model: Any = self.model
        interval = max(model.target_update_interval // model.n_envs, 1)
        for _ in range(self._calls // interval - self._ours.kept("calls") // interval):
            polyak_update(self._twin.q_net.parameters(), self._twin.q_net_target.parameters(), model.tau)
        self._ours.keep("calls", self._calls)

    def _before_step(self) -> None:
        if not self.is_training:
            return
        self._catch_up()
        for name, parameter in self.networks_examined[_NETWORK].parameters.items():
            self._before[name].copy_(parameter.detach())

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        parameters = self.networks_examined[_NETWORK].parameters
        moved = norm_of({name: p.detach() - self._before[name] for name, p in parameters.items()})
        generator = torch_generator((self.sampler.seed + crc32(b"brownian motion"), gradient_step))
        self._twin.wander(list(parameters), moved, generator)
        super().after_gradient_steps(before, gradient_step)

    def examine(self, batch: Batch, gradient_step: int) -> dict[str, Any]:
        self._catch_up()
        policies = {self.networks_examined[_NETWORK]: self.model.policy, self._twin_network: self._twin}
        values: dict[str, Any] = {}
        for network, policy in policies.items():
            found = self._of_network(network, policy, batch, gradient_step)
            values |= {f"plasticity/{quantity}/{network.name}": value for quantity, value in found.items()}
        return values

    def _of_network(self, network: Network, policy: Any, batch: Batch, gradient_step: int) -> dict[str, float]:
        seed = (self.sampler.seed, gradient_step)
        number = int(torch.randint(2**62, (), generator=torch_generator(seed)))
        objective = probe_loss(network, batch, number)
        spectrum = hessian_spectrum(network, objective, steps=self.steps, vectors=self.vectors, seed=number)
        covariance = gradient_covariance(network, td_loss(self.model, _NETWORK, self.sampler.batch_size, seed, policy))
        assert self._initial is not None
        return {
            **quantities_of(spectrum, OF_SPECTRUM),
            **quantities_of(covariance, OF_COVARIANCE),
            "distance": distance_from(network, self._initial),
        }

    def store(self) -> None:
        # Callbacks are not notified of a save. On the CPU the twin itself is saved, without a copy.
        for name, tensor in self._twin.state_dict().items():
            self._kept[name] = tensor.detach().cpu()
