"""Settings of every test."""

import gc
from contextlib import contextmanager

import pytest

# Torch and all that needs it are imported where they are used: the process that only hands out tests does without.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let one worker run all tests of a file, so that what they share is made once, unless asked for otherwise."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_sessionstart():
    # What is imported never becomes garbage. Looking for garbage among it takes seconds.
    gc.disable()


def pytest_collection_finish():
    gc.enable()
    gc.set_threshold(700, 10, 200)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    # On eight neurons, threads only wait for each other.
    torch.set_num_threads(1)


# Rooms in which wirings are read for other ends. Wherever it matters that reading leaves no trace, each is read anew.
ABOVE_WIRING = {"algorithms", "callbacks", "interventions", "networks", "plasticity", "sb3", "studies", "sweeps"}


@pytest.fixture(scope="module")
def known_wirings():
    """Let networks that are built alike share a wiring."""
    from tests.helpers.known_wirings import use_known_wirings

    with pytest.MonkeyPatch.context() as patch:
        use_known_wirings(patch)
        yield


@pytest.fixture(autouse=True, scope="module")
def _known_wirings(request):
    if request.path.parent.name in ABOVE_WIRING:
        request.getfixturevalue("known_wirings")


@pytest.fixture
def tape():
    from tests.helpers.runs import Tape

    return Tape()


@contextmanager
def _undrawn():
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw_without_rendering", lambda self: None)
        patch.setattr(Figure, "savefig", lambda self, path, **settings: path.write_text("<svg></svg>"))
        yield


@pytest.fixture
def undrawn():
    """Figures that are made, and saved as files without a picture: drawing takes most of the time of a report."""
    with _undrawn():
        yield
