"""Opens a trained agent in the environment that it was trained in."""

from dataclasses import dataclass
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_redo.forward.contexts import everything_seeded
from sb3_redo.zoo.environments import EnvironmentOptions, make_environment
from sb3_redo.zoo.saved_agents import ALGORITHMS, SavedAgent
from sb3_redo.zoo.sources import Source, find_model


@dataclass(frozen=True)
class LoadedAgent:
    """Holds an agent that was opened. Close its environment after use.

    :param model: acts in its environment; its optimizers and buffers are not those of training
    :param algorithm: the zoo's name
    :param environment: the id of the environment that it acts in
    :param source: the zip, and what was saved beside it
    :param notes: what differs from training, in words
    """

    model: BaseAlgorithm
    algorithm: str
    environment: str
    source: Source
    notes: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the environment."""
        env = self.model.get_env()
        if env is not None:
            env.close()


def open_agent(
    path: Path, algorithm: str | None = None, options: EnvironmentOptions | None = None, *, safe: bool = False
) -> LoadedAgent:
    """Open an agent with the environment, wrappers and statistics that were saved with it.

    Agents, statistics and settings are pickles: they may run any code. With ``safe`` only tensors and known classes
    are unpickled.

    :param path: a zip, the folder of a zoo run, or a folder as the Hugging Face Hub has them
    :param algorithm: the zoo's name, where the zip does not tell
    :param options: what is wanted of the environment, over what was saved
    :param safe: whether to open only what needs no unpickling beyond tensors and known classes
    :raises UsageError: when there is no agent, or it does not fit what is wanted
    """
    source = find_model(path, safe=safe)
    agent = SavedAgent(source.model, safe=safe)
    name = agent.algorithm(source, algorithm)
    # Building a model seeds every random stream with the seed of its training.
    with everything_seeded(0):
        made = make_environment(source, agent, options or EnvironmentOptions())
        try:
            model, notes = agent.build(ALGORITHMS[name], made.env)
        except BaseException:
            made.env.close()
            raise
    return LoadedAgent(model, name, made.id, source, (*made.notes, *notes))
