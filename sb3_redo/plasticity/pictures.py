"""Matrices and spectra as pictures for TensorBoard."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.logger import Image
from torch import Tensor

from sb3_redo.plasticity.curvature import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def clustered(cosines: Tensor, clusters: int = 10, seed: int = 0) -> Tensor:
    """Return an order in which samples with gradients that agree stand together.

    Clusters the rows of a cosine matrix by k-means, as in Lyle et al. 2023.

    :param cosines: finite, [batch, batch]
    :param clusters: how many at most
    :param seed: of the first centres; no other random stream moves
    :return: row numbers, [batch]
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(clusters, len(cosines)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        # Of a network that has died all rows are alike, and make fewer clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        members = means.fit_predict(cosines.double().numpy())
    return torch.from_numpy(members).argsort(stable=True)


def cosine_picture(cosines: Tensor, title: str) -> Image:
    """A matrix of cosines, [batch, batch], its rows in clusters: red where gradients agree, blue where they oppose."""
    figure = _figure(4.8, 4.0)
    axes = figure.subplots()
    order = clustered(cosines)
    # Not the seismic map, whose ends are dark alike.
    shown = axes.imshow(cosines[order][:, order].numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(title=title, xlabel="sample", ylabel="sample")
    figure.colorbar(shown, label="cosine of gradients")
    return _drawn(figure)


def density_picture(spectrum: Spectrum, title: str, points: int = 400) -> Image:
    """The density of a Hessian's eigenvalues, on a logarithmic axis: most of them lie near 0."""
    low, high = spectrum.smallest, spectrum.largest
    room = 0.1 * (high - low) or 1.0
    at = torch.linspace(low - room, high + room, points, dtype=torch.float64)
    figure = _figure(4.8, 3.2)
    axes = figure.subplots()
    axes.semilogy(at.numpy(), np.maximum(spectrum.density(at, 0.1 * room).numpy(), 1e-12))
    axes.set(title=title, xlabel="eigenvalue of the Hessian", ylabel="density")
    axes.set_ylim(bottom=1e-8)
    axes.grid(alpha=0.3)
    return _drawn(figure)


def _figure(width: float, height: float) -> "Figure":
    # Not by pyplot, which keeps a list of figures and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: "Figure") -> Image:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return Image(pixels[..., :3].copy(), "HWC")
