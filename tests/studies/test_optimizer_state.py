"""Batched trainings of the study of optimizer states end as the package's own, and its page is made of its files."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import studies.optimizer_state as study
from sb3_redo.dormancy.meter import Meter
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.wiring.tracing import trace_wiring
from studies.renewed_weights import CountedSteps

PERIOD, SEED, THRESHOLD = 20, 3, 0.5


class Reference:
    """Trains one network with torch's Adam, and recycles it with the package."""

    def __init__(self, training):
        torch.manual_seed(training.seed)
        self.network, self.training = study.network_of(training.data), training
        self.inputs = study.inputs_of(training.data).double()
        self.optimizer = torch.optim.Adam(self.network.parameters(), training.learning_rate, eps=training.epsilon)
        self.counted = CountedSteps([self.optimizer])
        wiring = trace_wiring(self.network, self.inputs[:2])
        self.meter = Meter(self.network, wiring, {layer.name: "network" for layer in wiring})
        self.initial_weights = InitialWeights(lambda: study.network_of(training.data), untrained=self.network)

    def step(self, rows, labels):
        self.optimizer.zero_grad()
        cross_entropy(self.network(self.inputs[rows]), labels[rows]).backward()
        self.optimizer.step()

    def recycle(self, step):
        report = self.meter.measure(self.network, self.inputs, self.training.threshold)
        neurons = report.dormant_neurons()
        before, method = self.counted.values(), self.training.method
        surgery = Surgery(optimizer_state="clear" if method == "count" else method)
        generator = torch_generator((SEED, step))
        recycle(self.network, report.wiring, neurons, [self.optimizer], self.initial_weights, generator, surgery)
        if method == "count":
            self.counted.note(before)
        return sum(map(len, neurons.values()))

    def values(self):
        return nn.utils.parameters_to_vector(self.network.parameters()).detach()


@pytest.fixture
def exact():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


CASES = [(data, method) for data in study.DATA for method in ("clear", "restart", "match", "count")]


@pytest.mark.parametrize(("data", "method"), CASES)
def test_one_of_a_batch_is_trained_and_recycled_as_the_package_does_it(data, method, exact, monkeypatch):
    trainings = [study.Training(data, method, 1.5e-4, 3e-3, 0.1, PERIOD, SEED + 1)]
    trainings += [study.Training(data, method, 1e-8, 3e-3, THRESHOLD, PERIOD, SEED)]
    networks, reference = study.Networks(trainings), Reference(trainings[1])
    monkeypatch.setattr(networks, "fresh", lambda draws, seed, step: reference.values().numpy())
    draws, recycled = np.random.default_rng(0), []
    for step in range(1, 4 * PERIOD):
        labels = torch.from_numpy(draws.integers(10, size=study.INPUTS))
        rows = torch.from_numpy(draws.integers(study.INPUTS, size=32))
        networks.step(rows.expand(2, -1), labels.expand(2, -1))
        reference.step(rows, labels)
        if step % PERIOD == 0:
            recycled.append(reference.recycle(step))
        networks.recycle(step)
        torch.testing.assert_close(networks.values[1], reference.values(), rtol=0, atol=1e-6)
    assert len(recycled) == 3
    assert min(recycled) > 0
