"""System shared memory of one client: a pool of regions that the server has mapped too.

All regions have one size, enough for the largest call that the contract allows; pages that are never written cost
nothing. A region whose call was not answered (deadline, cancellation) may still be written by the server, so it is set
aside. The server refuses to unregister a region that it is using: once it agrees, the region can be used again.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.utils.shared_memory as shm

from airserve import contract
from airserve.client.wire import ALL_OUTPUTS, Layout, Tensors, plan_layout
from airserve.errors import EngineError

log = logging.getLogger(__name__)

MAX_REGIONS = 32
"""Calls beyond these, or beyond what /dev/shm holds, carry their tensors in the message."""
SHARED_FOLDER = "/dev/shm"


def _largest_call_bytes() -> int:
    sizes = {"B": contract.MAX_BATCH, "L": contract.MAX_BEHAVIOURS, "C": contract.MAX_CANDIDATES, "1": 1}
    tensors = {
        spec.name: np.broadcast_to(np.zeros((), dtype=spec.dtype), [sizes[axis] for axis in spec.axes])
        for spec in contract.REQUEST
    }
    return plan_layout(tensors, ALL_OUTPUTS).n_bytes


REGION_BYTES = _largest_call_bytes()


def _free_bytes() -> int:
    space = os.statvfs(SHARED_FOLDER)
    return space.f_bavail * space.f_frsize


class Region:
    """One shared memory region.

    Attributes:
        name: by which the server knows it.
        registered: whether the server has mapped it, as far as is known.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.registered = False
        self._handle = shm.create_shared_memory_region(name, name, REGION_BYTES, create_only=True)

    @property
    def registration(self) -> dict[str, Any]:
        """Arguments of tritonclient's `register_system_shared_memory`."""
        return {"name": self.name, "key": f"/{self.name}", "byte_size": REGION_BYTES}

    def write(self, layout: Layout, tensors: Tensors) -> None:
        """Copy a call's inputs in."""
        for at in layout.inputs:
            if at.n_bytes:
                shm.set_shared_memory_region(self._handle, [np.ascontiguousarray(tensors[at.spec.name])], at.offset)

    def read(self, layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[Any] | None]:
        """Copy a call's outputs out, in the shapes that the server says; None where it says none or one too large."""
        outputs: dict[str, npt.NDArray[Any] | None] = {}
        for at in layout.outputs:
            shape = shapes.get(at.spec.name, ())
            outputs[at.spec.name] = None
            if shape and math.prod(shape) <= math.prod(at.shape):
                array = shm.get_contents_as_numpy(self._handle, at.spec.dtype, shape, at.offset)
                outputs[at.spec.name] = array.copy()
        return outputs

    def destroy(self) -> None:
        """Unlink the memory; it is freed once the server has unmapped it too."""
        shm.destroy_shared_memory_region(self._handle)


class RegionPool:
    """The regions of one client."""

    def __init__(self) -> None:
        self._prefix = f"airserve-{os.getpid()}-{secrets.token_hex(4)}"
        self._free: deque[Region] = deque()
        self._aside: deque[Region] = deque()
        self._all: list[Region] = []
        self._growing = threading.Lock()
        self._told = False

    def open_first(self) -> None:
        """Make one region, so that a machine without shared memory is noticed at connect.

        Raises:
            EngineError: when there is no shared memory, or too little.
        """
        free = _free_bytes() if os.path.isdir(SHARED_FOLDER) else 0
        if free < REGION_BYTES:
            raise EngineError(
                f"shared_memory: expected at least {-(-REGION_BYTES >> 20)} MiB free in {SHARED_FOLDER}, got "
                f"{free >> 20} MiB; start the container with a larger --shm-size, or connect without shared memory"
            )
        self.give_back(self._create())

    def _create(self) -> Region:
        region = Region(f"{self._prefix}-{len(self._all)}")
        self._all.append(region)
        return region

    def take(self) -> Region | None:
        """A region for one call; None when all are in use."""
        try:
            return self._free.popleft()
        except IndexError:
            pass
        with self._growing:
            if len(self._all) < MAX_REGIONS and _free_bytes() >= REGION_BYTES:
                return self._create()
        if not self._told:
            self._told = True
            log.warning(
                "all %d shared memory regions are in use; calls beyond them carry their tensors in the message "
                "(said once a client)",
                len(self._all),
            )
        return None

    def set_aside(self, region: Region) -> None:
        """The call was not answered: the server may still be using the region."""
        self._aside.append(region)

    def take_aside(self) -> Region | None:
        """The region that was set aside first, to be unregistered before it is used."""
        return self._aside.popleft() if self._aside else None

    def give_back(self, region: Region) -> None:
        """The call was answered: the region can be used again."""
        self._free.append(region)

    @property
    def registered(self) -> list[Region]:
        """Regions to unregister at the server."""
        return [region for region in self._all if region.registered]

    def destroy(self) -> None:
        """Unlink all regions."""
        for region in self._all:
            region.destroy()
        self._all.clear()
        self._free.clear()
        self._aside.clear()
