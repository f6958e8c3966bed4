"""Maps the zoo's policies to scalable ones. Imports neither torch nor Stable-Baselines3."""

from sb3_redo.validation import one_of

_PACKAGE = "sb3_redo.networks"
_KINDS = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
_KINDS_OF_DQN = {"Dueling": "dueling", "Injectable": "injection"}
"""Prefixes of further DQN policies, and their modules."""
_OWNERS = {
    "dqn": "DQN",
    "double_dqn": "DQN",
    "drq": "DQN",
    "categorical_dqn": "CategoricalDQN",
    "qrdqn": "QRDQN",
    "sac": "SAC",
    "td3": "TD3",
    "ddpg": "TD3",  # as in SB3
    "tqc": "TQC",
    "crossq": "CrossQ",
    "ppo": "ActorCritic",
    "a2c": "ActorCritic",
    "trpo": "ActorCritic",
}


def scalable_policy(algorithm: str, policy: str) -> str:
    """Return the dotted path of the scalable policy that corresponds to an algorithm's own policy.

    >>> scalable_policy("dqn", "CnnPolicy")
    'sb3_redo.networks.DQNCnnPolicy'

    :param algorithm: the zoo's name
    :param policy: ``MlpPolicy``, ``CnnPolicy``, ``MultiInputPolicy``, or the path of a scalable policy of this
        algorithm, which is returned unchanged
    :raises ValueError: when the algorithm or the policy is unknown
    """
    owner = _OWNERS[one_of("algorithm", algorithm, tuple(_OWNERS))]
    # CrossQ has a policy for vectors only.
    kinds = _KINDS[:1] if owner == "CrossQ" else _KINDS
    own = {f"{_PACKAGE}.{room}{owner}{kind}" for room in ("", "policies.") for kind in kinds}
    if owner == "DQN":
        for prefix, home in _KINDS_OF_DQN.items():
            own |= {f"{_PACKAGE}.{room}{prefix}{owner}{kind}" for room in ("", f"{home}.") for kind in kinds}
    if policy in own:
        return policy
    return f"{_PACKAGE}.{owner}{one_of(f'the policy of {algorithm}', policy, kinds)}"


def algorithms_of(policy: str) -> tuple[str, ...]:
    """Return the zoo's names of algorithms that use one of our policies. Empty for other classes.

    >>> algorithms_of("TD3CnnPolicy")
    ('td3', 'ddpg')
    """
    owner = next((policy.removesuffix(kind) for kind in _KINDS if policy.endswith(kind)), "")
    for prefix in _KINDS_OF_DQN:
        owner = owner.removeprefix(prefix)
    return tuple(algorithm for algorithm, name in _OWNERS.items() if name == owner)
