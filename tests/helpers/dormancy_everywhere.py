"""A pytest plugin that adds a DormancyCallback to every ``learn()``, for the tests of SB3 and of what extends it.

In a checkout of those tests, with $HERE this repository::

    PYTHONPATH=$HERE:$HERE/tests/helpers python -m pytest -p dormancy_everywhere

Beside pytest's own counts it says how many trainings there were and how many measurements were made in them. The
warnings that pytest lists say why others were not measured.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback

from sb3_redo import DormancyCallback


class CountingCallback(DormancyCallback):
    """Counts the trainings that it is added to, and the measurements in them."""

    def __init__(self, counts: Counter[str], measuring_period: int, batch_size: int):
        super().__init__(measuring_period=measuring_period, batch_size=batch_size)
        self._counts = counts
        counts["trainings"] += 1

    def log(self, report: Any, gradient_step: int) -> None:
        super().log(report, gradient_step)
        self._counts["measurements"] += report is not None


@contextmanager
def measured_everywhere(measuring_period: int = 50, batch_size: int = 32) -> Iterator[Counter[str]]:
    """Add a DormancyCallback to every training, after the callbacks that it has; yields what was counted."""
    counts: Counter[str] = Counter()
    init_callback = BaseAlgorithm._init_callback

    def with_ours(self: Any, callback: Any, progress_bar: bool = False) -> BaseCallback:
        given = callback if isinstance(callback, list) else [callback]
        theirs = [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]
        ours = CountingCallback(counts, measuring_period, batch_size)
        return init_callback(self, CallbackList([*theirs, ours]), progress_bar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseAlgorithm, "_init_callback", with_ours)
        yield counts


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    everywhere = measured_everywhere()
    session.config.stash[_COUNTS] = everywhere.__enter__()
    session.config.add_cleanup(lambda: everywhere.__exit__(None, None, None))
    return (yield)


_COUNTS = pytest.StashKey[Counter[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts = config.stash[_COUNTS]
    terminalreporter.write_line(f"{counts['measurements']} measurements in {counts['trainings']} trainings")
