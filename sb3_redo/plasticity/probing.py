"""The probe task as a callback."""

from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.plasticity.agent_networks import trained_by
from sb3_redo.plasticity.measuring import ExaminingCallback
from sb3_redo.plasticity.network import Network
from sb3_redo.plasticity.probe_task import ProbeResult, probe
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.model import initial_weights_of, is_trained
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.validation import one_of, positive_integer

BUDGETS = {"paper": (2000, 10), "cheap": (200, 2)}
"""Steps per target, and number of targets."""


class ProbeTaskCallback(ExaminingCallback):
    """Pauses training, fits copies of each network to random targets, and logs their losses (Lyle et al. 2023).

    Training is bit for bit the same as without this callback. The authors' probes make 20,000 optimizer steps for each
    network, every 5,000 gradient steps. Cheap ones make 400. ``docs/plasticity.md`` has the costs.

    :param measuring_period: in gradient steps
    :param budget: ``"cheap"`` is 200 steps on each of 2 targets, ``"paper"`` 2,000 on each of 10
    :param steps: optimizer steps per target. Default: those of ``budget``.
    :param targets: number of targets. Default: that of ``budget``.
    :param batch_size: number of observations with targets. The paper does not say how many. A step uses as many of them
        as the algorithm's own steps.
    :param settings: ``networks``, ``seed`` and ``verbose``, see
        :class:`~sb3_redo.plasticity.measuring.ExaminingCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    settings_in_key = (*ExaminingCallback.settings_in_key, "steps", "targets")

    def __init__(
        self,
        measuring_period: int = 50_000,
        budget: str = "cheap",
        steps: int | None = None,
        targets: int | None = None,
        batch_size: int = 512,
        **settings: Any,
    ):
        super().__init__(measuring_period, batch_size, **settings)
        its_steps, its_targets = BUDGETS[one_of("budget", budget, tuple(BUDGETS))]
        self.steps = its_steps if steps is None else positive_integer("steps", steps)
        self.targets = its_targets if targets is None else positive_integer("targets", targets)

    def prepare(self) -> None:
        self._initial_weights = initial_weights_of(self.model)
        super().prepare()
        if not is_trained(self.model):
            self.memory.keep("began untrained", True)

    def rewire(self) -> None:
        super().rewire()
        self._optimizers = {}
        for name, network in list(self.networks_examined.items()):
            of_it = [each for each in self.agent.optimizers if trained_by(self.agent, each, network)]
            if of_it:
                self._optimizers[name] = of_it[0]
            elif self.networks is None:
                del self.networks_examined[name]
            else:
                raise RuntimeError(f"{name} cannot be probed: no optimizer changes all of it")
        for network in self.networks_examined.values():
            self._fresh(network, 0)

    def _fresh(self, network: Network, seed: int) -> dict[str, Tensor]:
        """Return parameters and buffers of a fresh network, by their names in the policy."""
        state = self._initial_weights.state(seed)
        buffers = {name: buffer for name, buffer in network.module.named_buffers() if uncompiled_name(name) in state}
        fresh: dict[str, Tensor] = {}
        for name, tensor in {**buffers, **network.parameters}.items():
            built = state.get(uncompiled_name(name))
            if built is None or built.shape != tensor.shape:
                raise RuntimeError(
                    f"{name} is {tuple(tensor.shape)}, but {'absent' if built is None else tuple(built.shape)} in a "
                    "policy built from the model's policy_kwargs: no fresh network can be built for the targets. Give "
                    "its shape in policy_kwargs."
                )
            fresh[name] = built.to(tensor)
        return fresh

    def examine(self, batch: Batch, gradient_step: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, network in self.networks_examined.items():
            result = self._probe(network, batch, gradient_step)
            found = {"probe_loss": result.loss, "probe_first_loss": result.first_loss, "plasticity": result.plasticity}
            values |= {f"plasticity/{quantity}/{name}": value for quantity, value in found.items()}
            at_first = self.memory.kept(name)
            if at_first is None and self.memory.kept("began untrained"):
                at_first = result.plasticity
                self.memory.keep(name, at_first)
            if at_first is not None:
                values[f"plasticity/plasticity_loss/{name}"] = at_first - result.plasticity
        return values

    def _probe(self, network: Network, batch: Batch, gradient_step: int) -> ProbeResult:
        # Each network has its own stream, so that its result does not depend on the other networks probed.
        generator = torch_generator((self.sampler.seed + crc32(network.name.encode()), gradient_step))
        seeds = torch.randint(2**62, (1 + self.targets,), generator=generator).tolist()
        fresh, optimizer = [self._fresh(network, seed) for seed in seeds[1:]], self._optimizers[network.name]
        size = min(self.sampler.batch_size, getattr(self.model, "batch_size", self.sampler.batch_size))
        return probe(network, batch, fresh, optimizer, steps=self.steps, minibatch_size=size, seed=seeds[0])
