"""Optimizers from papers that torch lacks, and optimizers by name."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sb3_redo.validation import non_negative_number


class Adam(torch.optim.Adam):
    """Adam with an additional epsilon inside the root (Lyle et al. 2023, appendix A.1, equation 6)::

        step = lr * m_hat / (sqrt(v_hat + eps_root) + eps)

    m_hat and v_hat are the bias-corrected moments. Their stable setting is ``betas=(0.9, 0.9), eps_root=1e-3,
    eps=1e-9``. With ``eps_root=0`` it equals torch's Adam. The state has torch's names and shapes.

    :param params: the parameters to train
    :param lr: learning rate
    :param betas: decay of the moments
    :param eps: outside the root
    :param eps_root: inside the root
    :param weight_decay: of an L2 penalty, added to the gradient
    :raises ValueError: on a value out of range; :raises TypeError: on a setting of the wrong type
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_root: float = 0.0,
        weight_decay: float = 0.0,
    ):
        beta1, beta2 = betas  # a list, from YAML
        super().__init__(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, foreach=False)
        self.defaults["eps_root"] = non_negative_number("eps_root", eps_root)
        self._complete_groups()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._complete_groups()

    def _complete_groups(self) -> None:
        """Add the default to groups saved by torch's Adam."""
        for group in self.param_groups:
            group.setdefault("eps_root", self.defaults["eps_root"])

    # Does not call torch's step, which would run the step's hooks a second time.
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step of every parameter that has a gradient.

        :param closure: computes the loss again, if given
        :return: the closure's result
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter, parameter.grad)
        return loss

    def _update(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        steps = float(state["step"])
        corrected = (state["exp_avg_sq"] / (1 - beta2**steps)).add_(group["eps_root"])
        parameter.addcdiv_(
            state["exp_avg"], corrected.sqrt_().add_(group["eps"]), value=-group["lr"] / (1 - beta1**steps)
        )


def optimizer_named(path: str) -> type[Optimizer]:
    """Return the optimizer class at a dotted path.

    >>> optimizer_named("torch.optim.AdamW").__name__
    'AdamW'

    :raises ValueError: when the path leads to none
    """
    module, _, name = path.rpartition(".")
    wanted = "optimizer_class must be the path of {}, such as torch.optim.AdamW, got {!r}"
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{wanted.format('a class', path)}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(wanted.format("an optimizer", path))
    return found
