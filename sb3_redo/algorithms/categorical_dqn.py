"""Categorical DQN with two-hot targets, one of the interventions of Lyle et al. 2023 (section 6.2).

Lyle et al. state neither bins nor support. The encoding is that of MuZero (Schrittwieser et al. 2020, appendix F) and
Farebrother et al. 2024 ("Stop Regressing", section 3.1). C51 projects the whole distribution of the next value instead.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.nn import functional

from sb3_redo.networks.categorical import (
    CategoricalDQNCnnPolicy,
    CategoricalDQNMlpPolicy,
    CategoricalDQNMultiInputPolicy,
    CategoricalQNetwork,
    two_hot,
)


class CategoricalDQN(DQN):
    """DQN that learns a distribution over bins of its target, by cross-entropy.

    The policy sets the bins: ``policy_kwargs={"n_bins": 51, "v_min": -10.0, "v_max": 10.0}``. Targets beyond the
    outermost centres are clipped to them. ``train/clipped_targets`` is the fraction of clipped targets in the last
    ``train()``. All other settings are SB3's.

    :raises TypeError: when the policy's network has no bins
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CategoricalDQNMlpPolicy,
        "CnnPolicy": CategoricalDQNCnnPolicy,
        "MultiInputPolicy": CategoricalDQNMultiInputPolicy,
    }

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.q_net, CategoricalQNetwork):
            raise TypeError(
                f"CategoricalDQN needs a policy whose values have bins, such as "
                f"sb3_redo.networks.CategoricalDQNMlpPolicy, and got {type(self.policy).__name__}"
            )
        self.q_net.learns_by_logits = True

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Train as SB3 does, on the cross-entropy between two-hot targets and the taken action's distribution."""
        network: Any = self.q_net
        buffer: Any = self.replay_buffer
        losses, clipped = [], []
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(gradient_steps):
            batch = buffer.sample(batch_size, env=self._vec_normalize_env)
            targets = self._targets(batch)
            taken = batch.actions.long().view(-1)
            logits = network.logits(batch.observations)[torch.arange(len(taken), device=taken.device), taken]
            loss = functional.cross_entropy(logits, two_hot(targets, network.centres))
            losses.append(loss.item())
            clipped.append(((targets < network.centres[0]) | (targets > network.centres[-1])).float().mean().item())
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))
        self.logger.record("train/clipped_targets", np.mean(clipped))

    @torch.no_grad()
    def _targets(self, batch: Any) -> Tensor:
        """Return SB3's targets ``r + gamma * max_a Q_target(s', a)``, [batch]."""
        discounts = self.gamma if batch.discounts is None else batch.discounts.view(-1)
        following = self.q_net_target(batch.next_observations).amax(1)
        targets: Tensor = batch.rewards.view(-1) + (1 - batch.dones.view(-1)) * discounts * following
        return targets
