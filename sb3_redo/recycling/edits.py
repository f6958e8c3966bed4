"""Changing some entries of a tensor in place, and no others."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Edit:
    """Entries ``index`` along ``axis`` of ``tensor`` become ``values``: a number, a tensor of their shape, or one of
    size 1 along the axis for all of them."""

    tensor: Tensor
    axis: int
    index: Tensor
    values: Tensor | float

    def apply(self) -> None:
        """Make the change."""
        if self.axis > 0 and self._is_uniform() and torch.isfinite(self.tensor.sum()):
            # A product with 1 leaves the other entries bit for bit as they are, and all of it takes a tenth of the
            # time that picking columns out of a large matrix takes.
            indicator = self._indicator()
            self.tensor.mul_(1 - indicator)
            if isinstance(self.values, Tensor):
                self.tensor.addcmul_(self.values, indicator)
            elif self.values:
                self.tensor.add_(indicator, alpha=self.values)
        elif isinstance(self.values, Tensor):
            shape = list(self.tensor.shape)
            shape[self.axis] = len(self.index)
            self.tensor.index_copy_(self.axis, self.index, self.values.to(self.tensor).expand(shape))
        else:
            self.tensor.index_fill_(self.axis, self.index, self.values)

    def _is_uniform(self) -> bool:
        """Whether all entries along the axis get the same values."""
        return not isinstance(self.values, Tensor) or self.values.shape[self.axis] == 1

    def _indicator(self) -> Tensor:
        """1 at the index and 0 elsewhere, broadcasting along all other axes."""
        shape = [1] * self.tensor.ndim
        shape[self.axis] = self.tensor.shape[self.axis]
        return self.tensor.new_zeros(shape).index_fill_(self.axis, self.index, 1.0)
