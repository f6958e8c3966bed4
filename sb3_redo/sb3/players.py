"""Acts like an algorithm that collects experience."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor


class Move(NamedTuple):
    """The actions of one step of all environments.

    :param actions: for ``env.step``, [environments, ...]
    :param scaled: the same in [-1, 1], if critics take actions, [environments, action size]
    :param states: the states at the observations, see :class:`~sb3_redo.sb3.batch.Batch`
    """

    actions: np.ndarray
    scaled: np.ndarray | None = None
    states: tuple[Tensor, ...] = ()


class Player:
    """Draws actions by the model's ``predict``. For DQN, this explores at the last exploration rate of training.

    :param model: only the modes of its policy change
    :param env: the environment to act in
    """

    def __init__(self, model: Any, env: VecEnv):
        self.model = model
        self.env = env

    def move(self, observations: Any, episode_starts: np.ndarray) -> Move:
        """Choose actions for one step of all environments.

        :param observations: [environments, ...]
        :param episode_starts: whether an episode began with the observation, [environments]
        """
        return Move(self.model.predict(observations, deterministic=False)[0])


class NoiseMatrices:
    """Redraws the matrices of state-dependent exploration (gSDE, Raffin et al. 2022) as training does.

    Training redraws them at the start of every rollout, and every ``sde_sample_freq`` steps within it.

    :param model: any model. Does nothing if it does not use gSDE.
    :param environments: number of environments
    """

    def __init__(self, model: Any, environments: int):
        self.model = model
        self.environments = environments
        self.steps = self.episodes = 0  # of this rollout

    def before_step(self, episode_starts: np.ndarray) -> None:
        """Redraw the matrices if they are due.

        :param episode_starts: whether an episode begins with this step, [environments]
        """
        if not self.model.use_sde:
            return
        self.episodes += int(np.sum(episode_starts)) if self.steps else 0
        if self._is_rollout_over():
            self.steps = self.episodes = 0
        period = self.model.sde_sample_freq
        if self.steps == 0 or (period > 0 and self.steps % period == 0):
            noise_holder(self.model).reset_noise(self.environments)
        self.steps += 1

    def _is_rollout_over(self) -> bool:
        if isinstance(self.model, OnPolicyAlgorithm):
            return self.steps >= self.model.n_steps
        return not should_collect_more_steps(self.model.train_freq, self.steps, self.episodes)


def noise_holder(model: Any) -> Any:
    """Return the network whose action distribution holds the noise matrices of state-dependent exploration."""
    return model.policy if isinstance(model, OnPolicyAlgorithm) else model.actor


class MaskedPlayer(Player):
    """Draws only actions that the environment's masks allow, if it has masks."""

    def __init__(self, model: Any, env: VecEnv):
        super().__init__(model, env)
        self.is_masked = is_masking_supported(env)

    def move(self, observations: Any, episode_starts: np.ndarray) -> Move:
        masks = get_action_masks(self.env) if self.is_masked else None
        return Move(self.model.predict(observations, deterministic=False, action_masks=masks)[0])


class ScaledPlayer(Player):
    """Adds the model's action noise (TD3), and scales actions for the critics as in a replay buffer."""

    def __init__(self, model: Any, env: VecEnv):
        super().__init__(model, env)
        self.noise = self._own_noise(model.action_noise, env.num_envs)

    @staticmethod
    def _own_noise(noise: ActionNoise | None, environments: int) -> VectorizedActionNoise | None:
        """Copy the noise and its state for a number of environments."""
        if noise is None:
            return None
        single = copy.deepcopy(noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise)
        single.reset()
        return VectorizedActionNoise(single, environments)

    def move(self, observations: Any, episode_starts: np.ndarray) -> Move:
        policy = self.model.policy
        scaled = policy.scale_action(super().move(observations, episode_starts).actions)
        if self.noise is not None:
            self.noise.reset(np.flatnonzero(episode_starts))
            scaled = np.clip(scaled + self.noise(), -1, 1)
        scaled = scaled.astype(np.float32)
        return Move(policy.unscale_action(scaled), scaled)


class RecurrentPlayer(Player):
    """Keeps the states of actor and critic. ``predict`` returns only the actor's."""

    def __init__(self, model: Any, env: VecEnv):
        super().__init__(model, env)
        layers, _, size = model.policy.lstm_hidden_state_shape
        zeros = torch.zeros(layers, env.num_envs, size, device=model.device)
        self.memories = RNNStates((zeros, zeros), (zeros, zeros))

    def move(self, observations: Any, episode_starts: np.ndarray) -> Move:
        policy, space = self.model.policy, self.model.action_space
        starts = torch.as_tensor(episode_starts, dtype=torch.float32, device=self.model.device)
        met_with = (*(state.transpose(0, 1) for memory in self.memories for state in memory), starts)
        tensors, _ = policy.obs_to_tensor(observations)
        drawn, _, _, self.memories = policy(tensors, self.memories, starts)
        actions = drawn.cpu().numpy()
        if isinstance(space, spaces.Box):
            is_squashed = policy.squash_output
            actions = policy.unscale_action(actions) if is_squashed else np.clip(actions, space.low, space.high)
        return Move(actions, states=met_with)
