"""String item ids and the 64-bit ids of the contract."""

from __future__ import annotations

import numpy as np
import pytest

from airserve import ids
from airserve.contract import PAD_ITEM
from airserve.errors import DataError
from airserve.ids import ItemIds, item_id


def test_an_id_is_the_same_in_every_process_and_release() -> None:
    assert item_id("B00004OCKR") == 6477743118376309663
    assert item_id("") == 8238016292129134938


@pytest.mark.parametrize("text", ["", "0", "B00004OCKR", "süß", "猫のベッド", "x" * 10_000, " a", "a "])
def test_an_id_is_a_non_negative_64_bit_number(text: str) -> None:
    assert 0 <= item_id(text) < 2**63
    assert item_id(text) != PAD_ITEM


def test_different_strings_have_different_ids() -> None:
    texts = [f"{shelf}{number}" for shelf in ("A", "a", " a") for number in range(20_000)]
    assert len({item_id(text) for text in texts}) == len(texts)


def test_a_catalogue_is_encoded_in_its_order_and_decoded_back() -> None:
    texts = ["cat bed", "cat video", "猫", "cat bed"]
    known = ItemIds()
    numbers = known.encode(texts)
    assert numbers.dtype == np.int64
    assert numbers.shape == (4,)
    assert [known.decode(int(number)) for number in numbers] == texts


def test_ids_can_be_added_later_and_the_earlier_ones_stay() -> None:
    known = ItemIds(["a"])
    known.encode(iter(["b", "a"]))
    assert [known.decode(item_id(text)) for text in "ab"] == ["a", "b"]


def test_encoding_nothing_gives_an_empty_array_of_ids() -> None:
    numbers = ItemIds().encode([])
    assert numbers.dtype == np.int64
    assert numbers.shape == (0,)


def test_an_id_that_was_never_encoded_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ItemIds(["a"]).decode(item_id("b"))


def test_two_strings_with_the_same_id_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "item_id", len)
    with pytest.raises(DataError, match=r"'ab'.*'cd'"):
        ItemIds(["ab", "cd"])
