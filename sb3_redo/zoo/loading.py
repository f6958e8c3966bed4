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
    """An opened agent. Close its environment after use.

    :param model: acts in its environment. Its optimizers and buffers are not those of training.
    :param algorithm: the zoo's name
    :param environment: id of the environment that it acts in
    :param source: the zip and the files saved beside it
    :param notes: differences from training, in words
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
    """Open an agent with its saved environment, wrappers and statistics.

    Agents, statistics and settings are pickles: they may run any code. With ``safe`` only tensors and known classes
    are unpickled.

    :param path: a zip, the folder of a zoo run, or a folder in the layout of the Hugging Face Hub
    :param algorithm: the zoo's name, if the zip does not tell
    :param options: settings of the environment. They override saved ones.
    :param safe: whether to unpickle only tensors and known classes
    :raises UsageError: when there is no agent, or it does not fit the settings
    """
    source = find_model(path, safe=safe)
    agent = SavedAgent(source.model, safe=safe)
    name = agent.algorithm(source, algorithm)
    # Building a model seeds every random stream with its training seed.
    with everything_seeded(0):
        made = make_environment(source, agent, options or EnvironmentOptions())
        try:
            model, notes = agent.build(ALGORITHMS[name], made.env)
        except BaseException:
            made.env.close()
            raise
    return LoadedAgent(model, name, made.id, source, (*made.notes, *notes))
