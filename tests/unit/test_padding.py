"""Requests of different lengths leave the lookup in one of a few shapes, and hold what they held."""

from __future__ import annotations

import itertools

import numpy as np

from airserve import contract
from airserve.export.parity import random_inputs
from airserve.triton.padding import extent_of, pad_to_class

SIZES = [(1, 3), (7, 100), (90, 2), (128, 128), (60, 60), (129, 1), (5, 1024)]


def inputs_of(behaviours: int, candidates: int) -> dict[str, np.ndarray]:
    axes = {"B": 1, "L": behaviours, "C": candidates, "R": 1 + behaviours // 4, "U": 2 + behaviours // 3}
    return random_inputs(axes, n_rows=50, n_nodes=40, seed=behaviours)


def test_requests_up_to_the_usual_size_get_one_shape() -> None:
    assert {tuple(extent_of(pad_to_class(inputs_of(*sizes)))) for sizes in SIZES[:5]} == {(1, 128, 128, 128, 256)}


def test_what_a_request_holds_stays_in_its_place_and_the_rest_is_padding() -> None:
    fill = {contract.BEHAVIOUR_CHAINS.name: contract.PAD_CHAIN}
    for sizes in SIZES:
        inputs = inputs_of(*sizes)
        padded = pad_to_class(inputs)
        for name, array in inputs.items():
            inside = tuple(slice(size) for size in array.shape)
            np.testing.assert_array_equal(padded[name][inside], array)
            rest = padded[name].copy()
            rest[inside] = fill.get(name, 0)
            assert (rest == fill.get(name, 0)).all()


def test_every_request_of_the_profile_has_a_class_within_it() -> None:
    for at in (0, 1, 2):
        sizes = {axis: bounds[at] for axis, bounds in contract.PROFILE.items() if axis != "B"}
        chosen = contract.shape_class(sizes)
        for axis, size in sizes.items():
            assert size <= chosen[axis] <= contract.PROFILE[axis][2]


def test_classes_grow() -> None:
    for smaller, larger in itertools.pairwise(contract.SHAPE_CLASSES):
        assert smaller != larger
        assert all(smaller[axis] <= larger[axis] for axis in smaller)
