"""Block MDPs on labelled images (Lyle et al. 2023, "Understanding Plasticity in Neural Networks", section 3.2)."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_redo.environments.images import LabelledImages, load_images
from sb3_redo.validation import non_negative_integer, one_of, positive_integer

VARIANTS = ("true-label", "random-label", "sparse-reward")
"""The paper's "easy", "hard" and "sparse"."""


class BlockMDP(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """An MDP whose observations are images. In state s, the observation is a random image with label s.

    There is one state and one action per class, ten in the paper.

    ============= =================== ========================= ====================================
    variant       labels              reward                    next state
    ============= =================== ========================= ====================================
    true-label    the images' classes 1 if a = s, else 0        drawn uniformly for any action
    random-label  drawn once          1 if a = s, else 0        drawn uniformly for any action
    sparse-reward the images' classes 1 if a = s = 9, else 0    s + 1 if a = s, else drawn uniformly
    ============= =================== ========================= ====================================

    The paper leaves open the first state and the successor of the last (s = 9). Both are drawn uniformly, and no state
    ends an episode. Registered environments are truncated after 100 steps.

    In the sparse variant a wrong action may help: in the lower half of the states, a random state is closer to the
    reward on average than the next state.

    Each reset and step returns ``{"state": s}`` beside the observation.

    :param variant: ``true-label``, ``random-label`` or ``sparse-reward``
    :param data: ``digits`` (scikit-learn's), ``mnist`` or ``cifar10``, or images of your own
    :param folder: folder of the MNIST or CIFAR-10 files. Nothing is downloaded.
    :param label_seed: of the random labels. ``reset(seed=...)`` does not change them, so that parallel and evaluation
        environments have the same labels.
    :param n_images: number of images to use, from the first. Default: all.
    :param enlarge: integer factor on height and width. SB3's ``NatureCNN`` needs at least 36 pixels: 5 for digits, 2
        for the others.
    :param render_mode: ``rgb_array`` renders the observation
    :raises TypeError, ValueError: on wrong settings, and when a label has no image; :raises ImportError: without
        scikit-learn; :raises FileNotFoundError: saying which files are missing and where to get them
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  as Gymnasium has it

    def __init__(
        self,
        variant: str = "true-label",
        data: str | LabelledImages = "digits",
        *,
        folder: str | None = None,
        label_seed: int = 0,
        n_images: int | None = None,
        enlarge: int = 1,
        render_mode: str | None = None,
    ):
        self.variant = one_of("variant", variant, VARIANTS)
        self.enlarge = positive_integer("enlarge", enlarge)
        self.render_mode = None if render_mode is None else one_of("render_mode", render_mode, ("rgb_array",))
        non_negative_integer("label_seed", label_seed)
        source = load_images(data, folder)
        available = len(source.images)
        number = available if n_images is None else positive_integer("n_images", n_images)
        if number > available:
            raise ValueError(f"n_images is {number}, and there are {available} images")
        self.images, self.labels = source.images[:number], source.labels[:number]
        if variant == "random-label":
            self.labels = np.random.default_rng(int(label_seed)).integers(source.n_classes, size=number)
        self._images_of = [np.flatnonzero(self.labels == state) for state in range(source.n_classes)]
        missing = [state for state, found in enumerate(self._images_of) if not len(found)]
        if missing:
            raise ValueError(f"none of {number} images has the label {', '.join(map(str, missing))}: use more of them")
        height, width, channels = self.images.shape[1:]
        shape = (height * self.enlarge, width * self.enlarge, channels)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(source.n_classes)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self._any_state()
        return self._observe()

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"an action is one of 0 to {self._last}, got {action!r}")
        is_right = int(action) == self.state
        is_sparse = self.variant == "sparse-reward"
        reward = float(is_right and (self.state == self._last or not is_sparse))
        moves_on = is_sparse and is_right and self.state < self._last
        self.state = self.state + 1 if moves_on else self._any_state()
        observation, info = self._observe()
        return observation, reward, False, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the last observation, [height, width, 3], or ``None`` without ``render_mode``."""
        if self.render_mode is None:
            return None
        return np.broadcast_to(self._shown, (*self._shown.shape[:2], 3)).copy()

    @property
    def _last(self) -> int:
        return len(self._images_of) - 1

    def _any_state(self) -> int:
        return int(self.np_random.integers(self._last + 1))

    def _observe(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        image = self.images[self.np_random.choice(self._images_of[self.state])]
        self._shown: NDArray[np.uint8] = image.repeat(self.enlarge, 0).repeat(self.enlarge, 1)
        # A copy, so that changes of an observation do not show.
        return self._shown.copy(), {"state": self.state}
