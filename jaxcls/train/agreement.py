"""What processes ask of each other between checkpoints: to stop, to save. The steps carry it, in the all-reduce they have.

Each process says with each step what it wants; the sums come back with the step's metrics, which all processes read at
the same point. So all of them stop at the same step, and no message of its own is sent for it.
"""

import time
from typing import Any

import jax
import numpy as np

from jaxcls.train.signals import StopSignal
from jaxcls.train.steps import WISHES


class Agreement:
    """Whether to stop or to save, as all processes see it; a process that is alone sees its own wishes at once."""

    def __init__(self, stop: StopSignal, sharding: jax.sharding.NamedSharding):
        """`sharding`: of a batch."""
        self.several = jax.process_count() > 1
        self._stop, self._sharding = stop, sharding
        self._stop_heard: float | None = None  # time.monotonic()
        self._save = self._save_heard = False

    @property
    def stopping(self) -> bool:
        return self._stop_heard is not None if self.several else self._stop.requested is not None

    def saving(self, wanted: bool) -> bool:
        """Whether to save, this process wanting to or not."""
        self._save = wanted
        return self._save_heard if self.several else wanted

    def saved(self) -> None:
        self._save = self._save_heard = False

    def ask(self) -> tuple[jax.Array, ...]:
        """The last argument of a step among several processes: float32 `[devices, 2]`, each device with its process's."""
        if not self.several:
            return ()
        mine = np.array([[self._stop.requested is not None, self._save]], np.float32)
        mine = np.repeat(mine, jax.local_device_count(), 0)
        return (jax.make_array_from_process_local_data(self._sharding, mine),)

    def template(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of `ask`'s result."""
        shape = (self._sharding.mesh.size, 2)
        return (jax.ShapeDtypeStruct(shape, np.float32, sharding=self._sharding),) if self.several else ()

    def hear(self, results: dict[str, Any]) -> dict[str, Any]:
        """Takes the wishes out of what a step returned, read to the host."""
        results = dict(results)
        if self.several:
            stop, save = results.pop(WISHES) > 0
            if stop and self._stop_heard is None:
                self._stop_heard = time.monotonic()
            self._save_heard = bool(save)
        return results

    @property
    def reason(self) -> str:
        return self._stop.requested or "told to stop through another process"

    @property
    def seconds(self) -> float:
        """Since the signal, or since this process heard of it."""
        return time.monotonic() - (self._stop.requested_at if self._stop.requested else self._stop_heard)
