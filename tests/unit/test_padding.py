"""Requests of different lengths leave the lookup in one of a few shapes, and hold what they held."""

from __future__ import annotations

import itertools

import numpy as np

from airserve import contract
from airserve.export.parity import random_inputs
from airserve.triton.padding import extent_of, pad_to_class

SIZES = [(3, 8), (100, 9), (2, 70), (128, 128), (60, 16), (1, 129), (1024, 10)]
FILL = {contract.CHAIN_BIAS.name: contract.PADDED_CHAIN, contract.CANDIDATE_PRIOR.name: -np.inf}


def inputs_of(candidates: int, chains: int) -> dict[str, np.ndarray]:
    return random_inputs({"B": 1, "C": candidates, "R": chains}, contract.USUAL_SIZES, seed=candidates)


def test_requests_up_to_the_usual_size_get_one_shape() -> None:
    assert {tuple(extent_of(pad_to_class(inputs_of(*sizes)))) for sizes in SIZES[:5]} == {(1, 128, 128)}


def test_what_a_request_holds_stays_in_its_place_and_the_rest_is_padding() -> None:
    for sizes in SIZES:
        inputs = inputs_of(*sizes)
        padded = pad_to_class(inputs)
        assert set(padded) == {spec.name for spec in contract.RANKER_INPUTS}
        for name, array in inputs.items():
            inside = tuple(slice(size) for size in array.shape)
            np.testing.assert_array_equal(padded[name][inside], array)
            rest = padded[name].copy()
            fill = np.asarray(FILL.get(name, 0), dtype=rest.dtype)
            rest[inside] = fill
            assert (rest == fill).all()


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
