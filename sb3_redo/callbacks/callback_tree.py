"""The callbacks that run beside ours."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback


def callbacks_in(callback: Any) -> Iterator[BaseCallback]:
    """A callback and all that it holds."""
    if callback is None:
        return
    yield callback
    children: Iterable[Any] = getattr(callback, "callbacks", ())
    for child in (*children, getattr(callback, "callback", None)):
        if isinstance(child, BaseCallback):
            yield from callbacks_in(child)


def renewing_in(root: BaseCallback | None) -> Iterator[BaseCallback]:
    """Those among a callback and all that it holds that give neurons or whole layers other weights."""
    return (callback for callback in callbacks_in(root) if getattr(callback, "renews", False))


def refuse_parallel_training(root: BaseCallback | None) -> None:
    """The zoo's ParallelTrainCallback trains a copy of the model and overwrites this one's weights with the copy's."""
    for other in callbacks_in(root):
        if type(other).__name__ == "ParallelTrainCallback":
            raise RuntimeError(
                "ParallelTrainCallback trains a copy of the model and overwrites the weights of this one: nothing "
                "recycled here would last, and no gradient step is seen. Remove one of the two callbacks."
            )


def listen(root: BaseCallback, **events: Callable[[], None]) -> None:
    """Hear what the callback that was given to ``learn()`` hears, until training ends.

    For callbacks inside an ``EventCallback``, which passes on that training starts but not what follows.

    :param events: name of an event of SB3's, ``on_training_end`` among them, to what is to be called
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
