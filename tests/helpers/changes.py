"""What a recycling may change in a model, and whether it changed just that."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.algorithms import Known
from tests.helpers.runs import optimizers_of

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "square_avg")

Masks = dict[str, Tensor]
"""Parameter or buffer name to a bool mask of its shape."""


@dataclass(frozen=True)
class Entries:
    """The entries that belong to recycled neurons.

    :param incoming: rows of weights, and biases
    :param outgoing: columns of the consumers' weights
    :param alive: columns of the same weights that belong to other neurons of the same layers
    :param normalised: channels of normalisations on the neurons' way
    """

    incoming: Masks = field(default_factory=dict)
    outgoing: Masks = field(default_factory=dict)
    alive: Masks = field(default_factory=dict)
    normalised: Masks = field(default_factory=dict)

    def of(self, name: str, like: Tensor) -> Tensor:
        """All that a recycling may touch of one parameter or buffer."""
        touched = torch.zeros_like(like, dtype=torch.bool)
        for masks in (self.incoming, self.outgoing, self.normalised):
            if name in masks:
                touched = touched | masks[name]
        return touched


def entries_of(policy: nn.Module, known: dict[str, Known], dormant: dict[str, Tensor]) -> Entries:
    """Worked out from what is known of the networks.

    :param dormant: layer name to bool mask [neurons]
    """
    entries = Entries()

    def mask(masks: Masks, module: str, part: str) -> Tensor:
        value = getattr(policy.get_submodule(module), part)
        return masks.setdefault(f"{module}.{part}", torch.zeros_like(value, dtype=torch.bool))

    for name, neurons in dormant.items():
        layer = known[name]
        for part in ("weight", "bias"):
            mask(entries.incoming, name, part)[neurons] = True
        for consumer, (first, each) in layer.feeds.items():
            columns = neurons.repeat_interleave(each)
            theirs = slice(first, first + len(columns))
            mask(entries.outgoing, consumer, "weight")[:, theirs][:, columns] = True
            mask(entries.alive, consumer, "weight")[:, theirs][:, ~columns] = True
        for part in ("scale", "bias", "ra_mean", "ra_var") if layer.norm else ():
            mask(entries.normalised, layer.norm, part)[neurons] = True
    return entries


Snapshot = dict[tuple[str, str, str], Tensor]
"""Holder (``policy`` or an optimizer), name of the parameter or buffer, and what of it."""


def snapshot(model: Any) -> Snapshot:
    """Every parameter and buffer of a model, target networks included, and the state of every optimizer."""
    parameters = dict(model.policy.named_parameters())
    values = {("policy", name, "value"): value for name, value in (*parameters.items(), *model.policy.named_buffers())}
    names = {parameter: name for name, parameter in parameters.items()}
    for holder, optimizer in optimizers_of(model).items():
        for parameter, state in optimizer.state.items():
            name = names.get(parameter, "log_ent_coef")
            values |= {(holder, name, key): torch.as_tensor(value) for key, value in state.items()}
    return {key: value.detach().clone() for key, value in values.items()}


def assert_only_recycled(before: Snapshot, after: Snapshot, entries: Entries, mode: str, second: float = 0.0) -> None:
    """Entries of recycled neurons are renewed, in every optimizer, and all others are bit for bit what they were.

    :param mode: ``optimizer_state``
    :param second: what a second moment starts at
    """
    assert before.keys() == after.keys()
    for key, old in before.items():
        (holder, name, what), new = key, after[key]
        touched = entries.of(name, before["policy", name, "value"]) if name != "log_ent_coef" else torch.tensor(False)
        if what == "step":
            # A normalisation that forgets a channel may restart too.
            assert name in entries.normalised or new == (0 if mode == "restart" and touched.any() else old), key
            continue
        assert torch.equal(new[~touched], old[~touched]), key
        if holder == "policy":
            _assert_recycled(new, old, name, entries)
        elif what in FIRST_MOMENTS:
            assert not new[_of_weights(name, new, entries)].any(), key
        else:
            assert what in SECOND_MOMENTS, key
            _assert_second_moments(new, old, name, entries, mode, second)


def _of_weights(name: str, like: Tensor, entries: Entries) -> Tensor:
    none = torch.zeros_like(like, dtype=torch.bool)
    return entries.incoming.get(name, none) | entries.outgoing.get(name, none)


def _assert_recycled(new: Tensor, old: Tensor, name: str, entries: Entries) -> None:
    none = torch.zeros_like(new, dtype=torch.bool)
    incoming, outgoing = entries.incoming.get(name, none), entries.outgoing.get(name, none)
    assert not new[outgoing].any(), name
    if name.endswith("bias"):
        assert not new[incoming].any(), name
    else:
        redrawn = incoming & ~outgoing
        assert (new != old)[redrawn].all(), name
        assert new[redrawn].all(), name


def _assert_second_moments(new: Tensor, old: Tensor, name: str, entries: Entries, mode: str, second: float) -> None:
    touched = _of_weights(name, new, entries)
    if not touched.any():
        return
    if mode != "match":
        assert (new[touched] == second).all(), name
        return
    none = torch.zeros_like(new, dtype=torch.bool)
    incoming, outgoing, alive = (
        masks.get(name, none).flatten(1) if new.ndim > 1 else masks.get(name, none)[:, None]
        for masks in (entries.incoming, entries.outgoing, entries.alive)
    )
    rows = incoming.any(1)
    if rows.any() and not rows.all():
        mean = old[~rows].mean(0).expand_as(new[rows])
        apart = ~outgoing.view_as(new)[rows]
        torch.testing.assert_close(new[rows][apart], mean[apart])
    if outgoing.any() and alive.any():
        columns, live = (mask.view_as(new).movedim(1, 0).flatten(1).any(1) for mask in (outgoing, alive))
        mean = old[~rows][:, live].mean(1, keepdim=True)
        torch.testing.assert_close(new[~rows][:, columns], mean.expand_as(new[~rows][:, columns]))
