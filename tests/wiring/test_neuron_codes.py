"""Every element shows the binary code of its neuron."""

import pytest
import torch

from sb3_redo.wiring import neuron_codes
from sb3_redo.wiring.neuron_codes import NO_NEURON, SEVERAL_NEURONS, Assignments, BinaryCodes, Place, ReceivedCode

PLACE = Place("input", "next", 0)


def received(codes, assignments, function):
    """What arrives where a function of the driven neurons is seen."""
    seen = function(assignments.values())
    code = ReceivedCode(seen[:1], codes.neurons)
    code.receive(seen[:1], seen[1:2], seen[2:, None], assignments.first_bit)
    return code


def read(codes, function, level=(0.25, 0.75)):
    code = received(codes, codes.number_assignments(level, 0, 2 * codes.number_bits), function)
    code.merge(received(codes, codes.check_assignments(level), function))
    return codes.decode(code)[0].tolist()


def example(neurons):
    constant = torch.ones(len(neurons))
    return torch.stack([neurons[:, 2], neurons[:, 0], neurons[:, :2].amax(1), constant], 1)


def test_the_worked_example_is_true():
    codes = BinaryCodes(3, seed=1)
    driven = Assignments((0.0, 1.0), codes.assignments).values()
    table = torch.cat([driven, example(driven)[:, :3]], 1).int().tolist()
    rows = [line.split()[-7:] for line in neuron_codes.__doc__.splitlines() if line.endswith(" same")]
    assert [[int(cell) for cell in row[:-1]] for row in rows] == table
    (numbers,) = [line.split()[2:] for line in neuron_codes.__doc__.splitlines() if "read back  " in line]
    assert [int(number) for number in numbers] == [2, 0, SEVERAL_NEURONS, NO_NEURON] == read(codes, example)


@pytest.mark.parametrize("neurons", [1, 2, 3, 64, 100, 20000])
def test_every_neuron_has_a_code_of_its_own(neurons):
    codes = BinaryCodes(neurons, seed=3)
    assert read(codes, lambda values: values) == list(range(neurons))


@pytest.mark.parametrize("mix", [torch.maximum, torch.minimum, torch.add, torch.sub])
def test_two_neurons_never_pass_for_one(mix):
    codes = BinaryCodes(9, seed=3)
    one, other = torch.triu_indices(9, 9, 1)
    assert set(read(codes, lambda values: mix(values[:, one], values[:, other]))) <= {SEVERAL_NEURONS, NO_NEURON}


def test_check_bits_confirm_a_reading_and_refute_another():
    codes = BinaryCodes(50, seed=3)
    checks = {PLACE: received(codes, codes.check_assignments((0.25, 0.75)), lambda values: values)}
    true = torch.arange(50)[None]
    assert codes.check_bits_confirm({PLACE: true}, checks)
    assert not codes.check_bits_confirm({PLACE: true.roll(1)}, checks)
    assert not codes.check_bits_confirm({PLACE: true.where(true > 0, NO_NEURON)}, checks)
    assert not codes.check_bits_confirm({}, checks)
