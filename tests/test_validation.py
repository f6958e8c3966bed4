"""What users set is checked, and said back to them."""

import numpy as np
import pytest

from sb3_redo.validation import (
    flag,
    listed,
    non_negative_integer,
    non_negative_number,
    one_of,
    optional_integer,
    positive_integer,
)


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (1e3, 1000), (np.int64(7), 7)])
def test_whole_numbers_pass_however_they_are_written(value, expected):
    assert positive_integer("period", value) == expected
    assert isinstance(positive_integer("period", value), int)


@pytest.mark.parametrize("value", ["10", None, True, 2.5, [1]])
def test_other_things_are_no_integers(value):
    with pytest.raises(TypeError, match="period must be an integer, got"):
        positive_integer("period", value)


def test_bounds_are_named():
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        positive_integer("period", 0)
    with pytest.raises(ValueError, match="start must be at least 0, got -1"):
        non_negative_integer("start", -1)


def test_nothing_given_is_not_zero():
    assert optional_integer("seed", None) is None
    assert optional_integer("seed", 0) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_threshold_is_finite_and_not_negative(value):
    with pytest.raises(ValueError, match="threshold must be a finite number of at least 0, got"):
        non_negative_number("threshold", value)


def test_a_number_that_yaml_read_as_text_is_explained():
    with pytest.raises(TypeError, match=r"threshold must be a number, got '1e-3' \(PyYAML reads 1e-3 as text"):
        non_negative_number("threshold", "1e-3")


def test_the_nearest_choice_is_offered():
    with pytest.raises(ValueError, match=r"state must be one of 'clear', 'match', got 'cleer'; did you mean 'clear'\?"):
        one_of("state", "cleer", ("clear", "match"))
    with pytest.raises(ValueError, match=r"got 'xyz'$"):
        one_of("state", "xyz", ("clear", "match"))
    with pytest.raises(TypeError, match="state must be one of 'clear', 'match', got 3"):
        one_of("state", 3, ("clear", "match"))


def test_a_list_is_no_text_and_a_flag_no_number():
    assert listed("networks", ("a", "b")) == ["a", "b"]
    with pytest.raises(TypeError, match="networks must be a list, got 'q_net'"):
        listed("networks", "q_net")
    with pytest.raises(TypeError, match="compensate must be True or False, got 1"):
        flag("compensate", 1)
