"""Everything that a training step changes."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """Replicated on all devices.

    Attributes:
      step: optimizer steps done, int32 scalar; also the position in the data.
      params: the network's parameters.
      batch_stats: running statistics of its BN layers.
      opt_state: of the optax chain.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}
