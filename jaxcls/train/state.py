"""Everything that a training step changes."""

from typing import Any

import flax.struct
import jax

from jaxcls.precision import NO_LOSS_SCALE, NoLossScale


@flax.struct.dataclass
class TrainState:
    """Replicated on all devices.

    Attributes:
      step: optimizer steps done, int32 scalar; also the position in the data.
      params: the network's parameters.
      batch_stats: running statistics of its BN layers.
      opt_state: of the optax chain.
      loss_scale: of the precision policy.
      ema: running averages of `params` and `batch_stats`, as a dict of these two; `None` if the run keeps none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_scale: NoLossScale = NO_LOSS_SCALE
    ema: dict | None = None

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def networks(self) -> dict[str, dict]:
        """What is evaluated, by the name of its metrics: variables as `model.apply` takes them."""
        return {"val": self.variables} | ({"val_ema": self.ema} if self.ema else {})
