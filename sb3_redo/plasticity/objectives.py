"""Losses whose gradients and curvature are measured."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from torch import Tensor
from torch.nn import functional

from sb3_redo.forward.contexts import evaluating, everything_seeded, is_compiled, uncompiled
from sb3_redo.forward.nested import map_tensors
from sb3_redo.forward.state import unchanged
from sb3_redo.networks.categorical import two_hot
from sb3_redo.plasticity.network import Network
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.buffers import stored_observations
from sb3_redo.sb3.own_buffers import is_read_directly, restored
from sb3_redo.sb3.seeds import torch_generator


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss of a network on a batch.

    :param batch: the network's input
    :param targets: a nest of tensors [batch, ...]
    :param loss: the network's outputs [batch, outputs] and the targets to the loss of every row, [batch]. The mean is
        minimised.
    :param forward: replaces the network's own, if the loss is not a function of its outputs. Cross-entropy, for
        example, needs logits. Module and batch to a tensor [batch, ...] or nested tensors.
    """

    batch: Any = field(repr=False)
    targets: Any = field(repr=False)
    loss: Callable[[Tensor, Any], Tensor]
    forward: Callable[[Any, Any], Any] | None = field(default=None, repr=False)

    def mean(self, network: Network, state: Any = None) -> Tensor:
        """Return the mean loss, a scalar, see :meth:`of_rows`."""
        return self.of_rows(network, state).mean()

    def of_rows(self, network: Network, state: Any = None) -> Tensor:
        """Return the loss of every row, [batch].

        :param state: parameters and buffers to use, by name. Default: the network's own.
        """
        run = network if self.forward is None else replace(network, forward=self.forward)
        return self.loss(run(self.batch, state), self.targets)


def probe_loss(network: Network, batch: Any, seed: int = 0) -> Objective:
    """Return ``[f(X) - sg(f(X)) + e]²`` with e ~ N(0, 1), averaged over outputs (Lyle et al. 2023, section 4.2).

    The paper uses its Hessian. Its gradients have random directions, so cosines between them mean nothing.

    :param seed: of e
    """
    generator = torch.Generator().manual_seed(seed)
    with network.examined(), torch.no_grad():
        outputs = network.of_all(batch)
    noise = torch.randn(outputs.shape, generator=generator).to(outputs)
    return Objective(batch, outputs - noise, lambda outputs, targets: (outputs - targets).pow(2).mean(1))


def td_loss(model: BaseAlgorithm, name: str, batch_size: int, seed: tuple[int, int], policy: Any = None) -> Objective:
    """Return the temporal-difference loss that an algorithm trains a network with, on transitions from its buffer.

    In evaluation mode, without augmentation. From hindsight replay, only real transitions are used.

    :param model: DQN, Double DQN, DrQ, CategoricalDQN, QR-DQN, DDPG, TD3, SAC or TQC
    :param name: its value network: ``q_net``, ``quantile_net`` or ``critic``
    :param batch_size: number of transitions
    :param seed: of the transitions, and of the actions in targets
    :param policy: computes the targets. Default: the model's policy.
    :raises RuntimeError: when no such loss is known
    """
    how = _how(model, name)
    if how is None:
        raise RuntimeError(
            f"no temporal-difference loss of {type(model).__name__}'s {name} is known here: there is one of the values "
            "of DQN, DoubleDQN, DrQ, CategoricalDQN, QRDQN, DDPG, TD3, SAC and TQC. Every network has the loss 'probe'."
        )
    if batch_size > stored_observations(model):
        raise ValueError(f"batch_size is {batch_size}, but the buffer holds {stored_observations(model)} transitions")
    policy = model.policy if policy is None else policy
    modules = list(policy.modules())
    number = int(torch.randint(2**62, (), generator=torch_generator(seed)))
    with everything_seeded(number), evaluating(modules), uncompiled(is_compiled(modules)), unchanged(policy):
        sample = _transitions(model, batch_size)
        made = how(model, policy, sample)
    return Objective(Batch(sample.observations, sample.actions), *made)


def has_td_loss(model: BaseAlgorithm, name: str) -> bool:
    """Return whether :func:`td_loss` knows a loss of a network."""
    return _how(model, name) is not None


def _transitions(model: Any, batch_size: int) -> Any:
    buffer, env = model.replay_buffer, model._vec_normalize_env
    while not isinstance(buffer, BaseBuffer):  # while DrQ trains, a buffer that augments wraps it
        buffer = buffer.buffer
    if isinstance(buffer, HerReplayBuffer):
        # Its sample() asks the environment for rewards of relabelled goals.
        rows, environments = np.divmod(np.random.choice(stored_observations(model), batch_size), buffer.n_envs)
        return buffer._get_real_samples(rows, environments, env)
    if is_read_directly(buffer):
        return buffer.sample(batch_size, env=env)
    with restored(buffer, int(np.random.randint(2**31))):
        return map_tensors(Tensor.clone, buffer.sample(batch_size, env=env))


def _bootstrapped(model: Any, sample: Any, values: Tensor) -> Tensor:
    """Return ``r + gamma · values``, without the values at an episode's end. ``values`` is [batch, any number]."""
    discounts = model.gamma if sample.discounts is None else sample.discounts
    target: Tensor = sample.rewards + (1 - sample.dones) * discounts * values
    return target


class Made(NamedTuple):
    """The parts of an :class:`Objective`."""

    targets: Any
    loss: Callable[[Tensor, Any], Tensor]
    forward: Callable[[Any, Batch], Any] | None = None


def _dqn(model: Any, policy: Any, sample: Any) -> Made:
    values = policy.q_net_target(sample.next_observations).max(1, keepdim=True).values
    return Made((sample.actions.long(), _bootstrapped(model, sample, values)), _huber)


def _double_dqn(model: Any, policy: Any, sample: Any) -> Made:
    # The policy's own target: during training, the model has another object in its place.
    chosen = policy.q_net(sample.next_observations).argmax(1, keepdim=True)
    values = policy.q_net_target(sample.next_observations).gather(1, chosen)
    return Made((sample.actions.long(), _bootstrapped(model, sample, values)), _huber)


def _huber(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    actions, values = targets
    return functional.smooth_l1_loss(outputs.gather(1, actions), values, reduction="none").squeeze(1)


def _categorical_dqn(model: Any, policy: Any, sample: Any) -> Made:
    centres = policy.q_net.centres
    values = policy.q_net_target(sample.next_observations).max(1, keepdim=True).values
    targets = two_hot(_bootstrapped(model, sample, values).squeeze(1), centres)

    def loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        actions, distributions = targets
        logits = outputs.view(len(outputs), -1, len(centres))
        taken = logits.gather(1, actions.unsqueeze(2).expand(-1, 1, len(centres))).squeeze(1)
        return -(distributions * taken.log_softmax(1)).sum(1)

    return Made((sample.actions.long(), targets), loss, lambda policy, batch: policy.q_net.logits(batch.observations))


def _qrdqn(model: Any, policy: Any, sample: Any) -> Made:
    quantiles = policy.quantile_net_target(sample.next_observations)
    best = quantiles.mean(1).argmax(1)
    ahead = quantiles.gather(2, best.view(-1, 1, 1).expand(-1, quantiles.shape[1], 1)).squeeze(2)
    count = quantiles.shape[1]

    def loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        actions, values = targets
        every = outputs.view(len(outputs), count, -1)
        current = every.gather(2, actions.unsqueeze(1).expand(-1, count, 1)).squeeze(2)
        return _quantile_huber(current.unsqueeze(1), values).squeeze(1).sum(1).mean(1)

    return Made((sample.actions.long(), _bootstrapped(model, sample, ahead)), loss)


def _quantile_huber(current: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each quantile and target (Dabney et al. 2018, eq. 10), [batch, critics, quantiles, targets].

    :param current: [batch, critics, quantiles]
    :param targets: [batch, targets]
    """
    count = current.shape[2]
    middles = (torch.arange(count, device=current.device, dtype=current.dtype) + 0.5) / count
    error = targets[:, None, None, :] - current[..., None]
    huber = torch.where(error.abs() > 1, error.abs() - 0.5, 0.5 * error.pow(2))
    return (middles[:, None] - (error.detach() < 0).to(error)).abs() * huber


def _td3(model: Any, policy: Any, sample: Any) -> Made:
    noise = torch.randn_like(sample.actions) * model.target_policy_noise
    noise = noise.clamp(-model.target_noise_clip, model.target_noise_clip)
    actions = (policy.actor_target(sample.next_observations) + noise).clamp(-1, 1)
    values = torch.cat(policy.critic_target(sample.next_observations, actions), 1).min(1, keepdim=True).values
    targets = _bootstrapped(model, sample, values)
    return Made(targets, lambda outputs, targets: (outputs - targets).pow(2).sum(1))


def _next_of_sac(model: Any, policy: Any, sample: Any) -> tuple[Tensor, Tensor]:
    """Return the actor's next actions, and the entropy term subtracted from the values, [batch, 1]."""
    actions, log_prob = policy.actor.action_log_prob(sample.next_observations)
    ent_coef = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()
    return actions, ent_coef * log_prob.reshape(-1, 1)


def _sac(model: Any, policy: Any, sample: Any) -> Made:
    actions, entropy = _next_of_sac(model, policy, sample)
    values = torch.cat(policy.critic_target(sample.next_observations, actions), 1).min(1, keepdim=True).values
    targets = _bootstrapped(model, sample, values - entropy)
    return Made(targets, lambda outputs, targets: 0.5 * (outputs - targets).pow(2).sum(1))


def _tqc(model: Any, policy: Any, sample: Any) -> Made:
    actions, entropy = _next_of_sac(model, policy, sample)
    critic = policy.critic
    kept = critic.quantiles_total - model.top_quantiles_to_drop_per_net * critic.n_critics
    quantiles = policy.critic_target(sample.next_observations, actions).flatten(1).sort(1).values[:, :kept]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return _quantile_huber(outputs.view(len(outputs), critic.n_critics, -1), targets).mean((1, 2, 3))

    return Made(_bootstrapped(model, sample, quantiles - entropy), loss)


_TARGETS: dict[str, tuple[str, Callable[[Any, Any, Any], Made]]] = {
    "stable_baselines3.dqn.dqn.DQN.train": ("q_net", _dqn),
    "sb3_redo.algorithms.double_dqn.DoubleDQN.train": ("q_net", _double_dqn),
    "sb3_redo.algorithms.drq.DrQ.train": ("q_net", _double_dqn),
    "sb3_redo.algorithms.categorical_dqn.CategoricalDQN.train": ("q_net", _categorical_dqn),
    "sb3_contrib.qrdqn.qrdqn.QRDQN.train": ("quantile_net", _qrdqn),
    "stable_baselines3.td3.td3.TD3.train": ("critic", _td3),  # and DDPG, which trains the same way
    "stable_baselines3.sac.sac.SAC.train": ("critic", _sac),
    "sb3_contrib.tqc.tqc.TQC.train": ("critic", _tqc),
}
"""An algorithm's ``train`` to the network of its temporal-difference loss, and the function of its targets."""


def _how(model: Any, name: str) -> Callable[[Any, Any, Any], Made] | None:
    # Looked up by its train(), not its class, since a subclass may train on another loss.
    train = type(model).train
    network, made = _TARGETS.get(f"{train.__module__}.{train.__qualname__}", ("", None))
    return made if network == name else None
