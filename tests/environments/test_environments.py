"""Block MDPs: their dynamics and rewards by the paper's words, their images, and what Gymnasium and SB3 ask for."""

import doctest
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

import sb3_redo.environments
from sb3_redo import ReDoCallback
from sb3_redo.environments import EPISODE_LENGTH, BlockMDP, LabelledImages, images
from sb3_redo.environments.block_mdp import VARIANTS
from tests.helpers.image_files import labels_of, pixels, write_mnist

EVERY = pytest.mark.parametrize("variant", VARIANTS)
# Any two images differ, so that an image tells its index.
TINY = LabelledImages(np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(2, 1), labels_of(60))
N = 10


def played(variant, choose, steps=6000, seed=0, **settings):
    """Rows of state, action, reward, next state."""
    env = BlockMDP(variant, settings.pop("data", TINY), **settings)
    _, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(steps):
        state = info["state"]
        action = choose(state, rng)
        _, reward, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (False, False)
        rows.append((state, action, reward, info["state"]))
    return np.array(rows)


def either(state, rng):
    """The right action every other time."""
    return state if rng.random() < 0.5 else int(rng.integers(N))


def right(state, rng):
    return state


def assert_uniform(values, bins=N):
    """Each as often as any other, to within four and a half standard deviations."""
    counts = np.bincount(values.astype(int), minlength=bins)
    assert len(counts) == bins
    expected = len(values) / bins
    assert expected > 30
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected * (1 - 1 / bins)), counts


# Dynamics and rewards


@pytest.mark.parametrize("variant", ["true-label", "random-label"])
def test_the_reward_is_for_naming_the_state_and_what_follows_is_anything(variant):
    states, actions, rewards, following = played(variant, either).T
    assert np.array_equal(rewards, states == actions)
    assert_uniform(following[states == actions])
    assert_uniform(following[states != actions])
    for state in range(N):
        assert_uniform(following[states == state])


def test_sparse_rewards_are_for_naming_the_last_state_alone():
    states, actions, rewards, following = played("sparse-reward", either).T
    is_right, is_last = states == actions, states == 9
    assert np.array_equal(rewards, is_right & is_last)
    assert rewards.sum() > 100
    assert np.array_equal(following[is_right & ~is_last], states[is_right & ~is_last] + 1)
    assert_uniform(following[~is_right & ~is_last])
    assert_uniform(following[is_last])  # our choice
    assert_uniform(following[is_last & is_right])


@EVERY
def test_the_first_state_is_any(variant):
    env = BlockMDP(variant, TINY)
    env.reset(seed=3)
    assert_uniform(np.array([env.reset()[1]["state"] for _ in range(2000)]))


# Returns


def returns(variant, choose, episodes=60):
    rows = played(variant, choose, episodes * EPISODE_LENGTH)
    return rows[:, 2].reshape(episodes, EPISODE_LENGTH).sum(1)


@pytest.mark.parametrize("variant", ["true-label", "random-label"])
def test_the_best_return_is_the_episodes_length_and_chance_gets_a_tenth(variant):
    assert set(returns(variant, right)) == {100}
    chance = returns(variant, lambda _, rng: int(rng.integers(N)))
    assert chance.mean() == pytest.approx(10, abs=4.5 * np.sqrt(9 / len(chance)))


def jump_below_the_middle(state, rng):
    return state if state >= 5 else N - 1


def stationary_reward(choose):
    """Rewards per step of a policy of the sparse variant, from the stationary distribution of its states."""
    moves = np.zeros((N, N))
    for state in range(N):
        if choose(state, None) == state < 9:
            moves[state, state + 1] = 1
        else:
            moves[state] = 1 / N
    distribution = np.linalg.matrix_power(moves, 1000)[0]
    return distribution[9] * (choose(9, None) == 9)


def test_the_best_return_of_the_sparse_variant_is_not_that_of_the_right_actions():
    # Every 5.5 steps a reward when all actions are right, every 4 when wrong ones jump out of the lower half.
    assert stationary_reward(right) == pytest.approx(1 / 5.5)
    assert stationary_reward(jump_below_the_middle) == pytest.approx(1 / 4)
    for choose in (right, jump_below_the_middle):
        assert returns("sparse-reward", choose, 100).mean() == pytest.approx(100 * stationary_reward(choose), rel=0.06)
    # No other set of states to jump from does better.
    for number in range(2**9):
        jumps = [bool(number & 2**state) for state in range(9)] + [False]
        rate = stationary_reward(lambda state, _, jumps=jumps: (state + 1) % N if jumps[state] else state)
        assert rate <= 1 / 4 + 1e-9


# Images


@pytest.mark.parametrize("variant", ["true-label", "sparse-reward"])
def test_images_have_the_class_of_the_state_and_all_of_them_are_shown(variant):
    env = BlockMDP(variant, TINY)
    observation, info = env.reset(seed=0)
    seen = []
    for _ in range(4000):
        index = int(observation[0, 0, 0])
        assert np.array_equal(observation, TINY.images[index])
        assert TINY.labels[index] == info["state"]
        seen.append(index)
        observation, *_, info = env.step(0)
    if variant == "true-label":
        assert_uniform(np.array(seen), bins=60)
    assert set(seen) == set(range(60))


def test_random_labels_are_each_images_own_for_good():
    env = BlockMDP("random-label", TINY)
    found = {}
    for seed in range(40):
        observation, info = env.reset(seed=seed)
        for _ in range(40):
            assert found.setdefault(int(observation[0, 0, 0]), info["state"]) == info["state"]
            observation, *_, info = env.step(0)
    assert sorted(found) == list(range(60))
    assert [found[index] for index in range(60)] == env.labels.tolist()
    assert (env.labels != TINY.labels).sum() > 40
    # Another environment labels alike, one with another seed does not.
    assert np.array_equal(BlockMDP("random-label", TINY).labels, env.labels)
    assert not np.array_equal(BlockMDP("random-label", TINY, label_seed=1).labels, env.labels)


def test_random_labels_are_uniform_whatever_the_class():
    env = BlockMDP("random-label", "digits", label_seed=5)
    classes = images.load_images("digits").labels
    assert_uniform(env.labels)
    for label in range(N):
        assert np.abs(np.bincount(env.labels[classes == label], minlength=N) - 18).max() < 4.5 * np.sqrt(18)


def test_digits_of_a_state_are_digits_of_that_class():
    env = gym.make("sb3_redo/BlockMDP-true-label-v0")
    source = images.load_images("digits")
    observation, info = env.reset(seed=0)
    for _ in range(50):
        same = (source.images == observation).all((1, 2, 3))
        assert set(source.labels[same]) == {info["state"]}
        observation, *_, info = env.step(info["state"])


def test_images_from_files_are_shown(tmp_path):
    shown, labels = pixels(40, 28, 28), labels_of(40)
    write_mnist(tmp_path, shown, labels)
    env = gym.make("sb3_redo/BlockMDP-true-label-v0", data="mnist", folder=str(tmp_path), enlarge=2, n_images=30)
    observation, info = env.reset(seed=0)
    assert observation.shape == (56, 56, 1)
    for _ in range(50):
        same = [i for i in range(30) if np.array_equal(shown[i], observation[::2, ::2, 0])]
        assert [labels[i] for i in same] == [info["state"]]
        assert np.array_equal(observation[::2, ::2], observation[1::2, 1::2])
        observation, *_, info = env.step(0)


def test_an_enlarged_image_repeats_its_pixels():
    data = LabelledImages(np.array([[[[1, 2, 3], [4, 5, 6]]], [[[1, 2, 3], [4, 5, 6]]]], np.uint8), np.array([0, 1]))
    env = BlockMDP("true-label", data, enlarge=2, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    row = [[1, 2, 3], [1, 2, 3], [4, 5, 6], [4, 5, 6]]
    assert observation.tolist() == env.render().tolist() == [row, row]
    assert (env.observation_space.shape, env.action_space.n) == ((2, 4, 3), 2)


def test_grey_images_are_rendered_in_colour_and_nobody_else_changes_them():
    env = BlockMDP("true-label", TINY, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    before = observation.copy()
    observation[:] = 255
    env.render()[:] = 254
    assert env.render().shape == (2, 1, 3)
    assert np.array_equal(env.render(), before.repeat(3, 2))
    assert TINY.images.max() == 59
    assert BlockMDP("true-label", TINY).render() is None


# Seeds


def trace(env, seed, steps=50):
    observation, info = env.reset(seed=seed)
    seen = [(observation.tobytes(), info["state"])]
    for step in range(steps):
        observation, reward, *_, info = env.step(step % N)
        seen.append((observation.tobytes(), info["state"], reward))
    return seen


@EVERY
def test_a_seed_repeats_everything(variant):
    env = BlockMDP(variant, TINY)
    first = trace(env, 1)
    assert trace(env, 2) != first
    assert trace(env, 1) == first == trace(BlockMDP(variant, TINY), 1)
    labels = env.labels.copy()
    env.reset(seed=7)
    assert np.array_equal(env.labels, labels)


# As Gymnasium and SB3 have environments


@EVERY
def test_they_are_registered_and_pass_both_checks(variant):
    env = gym.make(f"sb3_redo/BlockMDP-{variant}-v0", enlarge=5, render_mode="rgb_array")
    assert env.spec.max_episode_steps == EPISODE_LENGTH
    assert env.unwrapped.variant == variant
    check_env(env.unwrapped)
    check_env_for_sb3(env)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(EPISODE_LENGTH)]
    assert ends == [(False, False)] * (EPISODE_LENGTH - 1) + [(False, True)]


def test_importing_registers_them_and_loads_neither_torch_nor_scikit_learn():
    script = """
import sys, gymnasium
assert not [name for name in gymnasium.registry if "BlockMDP" in name]
import sb3_redo.environments
assert len([name for name in gymnasium.registry if "BlockMDP" in name]) == 3
assert not {"torch", "stable_baselines3", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.slow
def test_making_one_registers_them_and_loads_scikit_learn():
    script = """
import sys, gymnasium
env = gymnasium.make("sb3_redo.environments:sb3_redo/BlockMDP-sparse-reward-v0")
assert "sklearn" in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.parametrize(("policy", "enlarge", "shape"), [("MlpPolicy", 1, (1, 8, 8)), ("CnnPolicy", 5, (1, 40, 40))])
def test_sb3_trains_and_recycles_on_them(policy, enlarge, shape):
    make = [lambda: gym.make("sb3_redo/BlockMDP-random-label-v0", enlarge=enlarge)] * 2
    settings = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200, "seed": 0}
    kwargs = {"net_arch": [16]} if policy == "MlpPolicy" else {"features_extractor_kwargs": {"features_dim": 16}}
    model = DQN(policy, DummyVecEnv(make), policy_kwargs=kwargs, **settings)
    assert isinstance(model.env, VecTransposeImage)
    assert model.observation_space.shape == shape
    model.learn(80, callback=ReDoCallback(0.5, recycling_period=5, measuring_period=5, batch_size=8))
    assert model.dormancy_memory["recycled_total"] > 0


def test_dqn_learns_the_easy_variant():
    env = gym.wrappers.TimeLimit(
        BlockMDP("true-label", LabelledImages(np.eye(N, dtype="uint8").reshape(N, 2, 5, 1) * 255, np.arange(N))), 20
    )
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=0.01,
        gamma=0.5,
        learning_starts=50,
        target_update_interval=50,
        seed=0,
        policy_kwargs={"net_arch": [32]},
        exploration_fraction=0.5,
    )
    model.learn(800)
    right_ones = []
    observation, info = env.reset(seed=1)
    for _ in range(20):
        action = model.predict(observation, deterministic=True)[0]
        right_ones.append(int(action) == info["state"])
        observation, *_, info = env.step(action)
    assert all(right_ones)


@pytest.mark.slow
def test_the_zoos_command_trains_on_them(tmp_path):
    config = Path(__file__).parents[2] / "zoo_configs" / "dqn_block_mdp.yml"
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "dqn", "--env", "sb3_redo/BlockMDP-random-label-v0"]
    command += ["--gym-packages", "sb3_redo.environments", "-conf", str(config), "-n", "300", "--eval-freq", "100"]
    command += ["-f", "logs", "--num-threads", "1", "-params", "learning_starts:100", "--env-kwargs", "n_images:100"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert list(tmp_path.glob("logs/dqn/*BlockMDP-random-label-v0_1/*.zip"))


def test_examples_in_docstrings_hold():
    outcome = doctest.testmod(sb3_redo.environments)
    assert outcome.attempted
    assert not outcome.failed


# Refusals


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"variant": "easy"}, ValueError, "variant must be one of 'true-label', "),
        ({"variant": "sparse"}, ValueError, "did you mean 'sparse-reward'"),
        ({"enlarge": 0}, ValueError, "enlarge must be at least 1"),
        ({"enlarge": 1.5}, TypeError, "enlarge must be an integer"),
        ({"label_seed": None}, TypeError, "label_seed must be an integer, got None"),
        ({"n_images": 61}, ValueError, "n_images is 61, and there are 60 images"),
        ({"n_images": 3}, ValueError, "none of 3 images has the label .*: use more of them"),
        ({"n_images": 12, "variant": "random-label"}, ValueError, "none of 12 images has the label"),
        ({"render_mode": "human"}, ValueError, "render_mode must be one of 'rgb_array'"),
        ({"folder": "x"}, ValueError, "folder='x' is for 'mnist' and 'cifar10'"),
    ],
)
def test_senseless_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        BlockMDP(**{"data": TINY, **settings})


@pytest.mark.parametrize("action", [10, -1, 0.5, None])
def test_actions_that_are_none_are_refused(action):
    env = BlockMDP("true-label", TINY)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="an action is one of 0 to 9, got"):
        env.step(action)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    images._digits.cache_clear()
    with pytest.raises(ImportError, match=r"""pip install "sb3-redo\[environments\]", or give data='mnist' """):
        BlockMDP()
    monkeypatch.undo()
    BlockMDP()
