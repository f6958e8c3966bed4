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
    """Return an order of samples in which those with similar gradients are adjacent.

    Clusters the rows of a cosine matrix by k-means, as in Lyle et al. 2023.

    :param cosines: finite, [batch, batch]
    :param clusters: number of clusters, at most
    :param seed: of the first centres. No other random stream is used.
    :return: row numbers, [batch]
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(clusters, len(cosines)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        # If a network is dead, all rows are equal and there are fewer clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        members = means.fit_predict(cosines.double().numpy())
    return torch.from_numpy(members).argsort(stable=True)


def cosine_picture(cosines: Tensor, title: str) -> Image:
    """Draw a matrix of cosines, [batch, batch], with clustered rows: red for agreement, blue for opposition."""
    figure = _figure(4.8, 4.0)
    axes = figure.subplots()
    order = clustered(cosines)
    # Not the seismic map: both of its ends are dark.
    shown = axes.imshow(cosines[order][:, order].numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(title=title, xlabel="sample", ylabel="sample")
    figure.colorbar(shown, label="cosine of gradients")
    return _drawn(figure)


def density_picture(spectrum: Spectrum, title: str, points: int = 400) -> Image:
    """Draw the density of a Hessian's eigenvalues on a logarithmic axis, since most lie near 0."""
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
    # Not by pyplot, which keeps all figures and selects a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: "Figure") -> Image:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return Image(pixels[..., :3].copy(), "HWC")
