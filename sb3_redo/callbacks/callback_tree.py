"""Finds the other callbacks of a training."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback


def callbacks_in(callback: Any) -> Iterator[BaseCallback]:
    """Yield a callback and all nested callbacks."""
    if callback is None:
        return
    yield callback
    children: Iterable[Any] = getattr(callback, "callbacks", ())
    for child in (*children, getattr(callback, "callback", None)):
        if isinstance(child, BaseCallback):
            yield from callbacks_in(child)


def renewing_in(root: BaseCallback | None) -> Iterator[BaseCallback]:
    """Yield the nested callbacks that overwrite weights."""
    return (callback for callback in callbacks_in(root) if getattr(callback, "renews", False))


def refuse_parallel_training(root: BaseCallback | None) -> None:
    """Refuse the zoo's ParallelTrainCallback, which trains a copy of the model and overwrites this one's weights.

    :raises RuntimeError: when a nested callback is one
    """
    for other in callbacks_in(root):
        if type(other).__name__ == "ParallelTrainCallback":
            raise RuntimeError(
                "ParallelTrainCallback trains a copy of the model and overwrites the weights of this one: nothing "
                "recycled here would last, and no gradient step is seen. Remove one of the two callbacks."
            )


def listen(root: BaseCallback, **events: Callable[[], None]) -> None:
    """Call functions at events of the callback given to ``learn()``, until training ends.

    Callbacks inside an ``EventCallback`` need this: it forwards the start of training, but no later event.

    :param root: the callback given to ``learn()``
    :param events: event of SB3 to the function to call. Must include ``on_training_end``.
    """

    def telling(event: str) -> Callable[[], None]:
        tell: Callable[[], None] = getattr(root, event)

        def told() -> None:
            if event == "on_training_end":
                for heard in events:
                    root.__dict__.pop(heard, None)
            tell()
            events[event]()

        return told

    root.__dict__.update({event: telling(event) for event in events})
