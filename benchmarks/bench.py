"""A model of the benchmarks, whose buffer is filled, and its gradient steps."""

import time
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from benchmarks.overhead import NETWORKS


class Bench:
    """A model whose buffer is filled, and its gradient steps."""

    def __init__(self, name: str, steps_at_once: int = 5, model: Any = None):
        self.name = name
        self.model: Any = model or NETWORKS[name]()[0]
        self.model.set_logger(Logger(None, []))  # that of the training is closed
        self.model.__dict__["start_time"] = time.time_ns()
        self.steps_at_once = steps_at_once

    def begin(self, callback: BaseCallback) -> None:
        """As ``learn()`` does it."""
        # What this model began with was not kept; what it is now will do for the time that it takes.
        policy = self.model.policy
        self.model.__dict__["initial_parameters"] = {name: p.detach().clone() for name, p in policy.named_parameters()}
        self.model.__dict__["initial_norms"] = {name: float(p.detach().norm()) for name, p in policy.named_parameters()}
        callback.init_callback(self.model)
        callback.on_training_start({"callback": callback}, {})

    def step(self) -> float:
        """CPU time of a few gradient steps."""
        begin = time.thread_time()
        self.model.train(gradient_steps=self.steps_at_once, batch_size=self.model.batch_size)
        return time.thread_time() - begin
