"""String item ids to the 64-bit ids of the contract, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from airserve.errors import DataError


def item_id(text: str) -> int:
    """A stable id in [0, 2**63) of any string, e.g. an ASIN: the first 63 bits of its BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class ItemIds:
    """A two-way map between a catalogue's string ids and 64-bit ids.

    Args:
        texts: the catalogue's ids; more can be added with `encode`.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: dict[int, str] = {}
        self.encode(texts)

    def encode(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """64-bit ids of `texts`, int64 [n].

        Raises:
            DataError: if two different strings have the same id (one in 10**9 for 100,000 items).
        """
        numbers = []
        for text in texts:
            number = item_id(text)
            known = self._texts.setdefault(number, text)
            if known != text:
                raise DataError(
                    "item ids",
                    expected="a different 64-bit id for each string",
                    got=f"the same for {known!r} and {text!r}",
                    remedy="rename one of them",
                )
            numbers.append(number)
        return np.array(numbers, dtype=np.int64)

    def decode(self, number: int) -> str:
        """The string that `encode` was given.

        Raises:
            KeyError: if it was not.
        """
        return self._texts[number]
