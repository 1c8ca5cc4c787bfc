"""The compiled programs of a run and the state that they take."""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.memory import compile_tidily
from jaxcls.train import steps
from jaxcls.train.augment import augment_of
from jaxcls.train.setup import Task
from jaxcls.train.state import TrainState


class Programs:
    """The training and the evaluation step of a task, compiled in a thread, one after the other, while other work goes on.

    Attributes:
      template: the state's shapes, dtypes and shardings.
    """

    def __init__(self, task: Task, polled: tuple[jax.ShapeDtypeStruct, ...] = ()):
        """`polled`: further arguments of both steps, see `agreement.Agreement.template`."""
        self._task, self._polled = task, polled
        self._extras = {"loss_scale": task.loss_scale, "ema": task.config.train.ema_decay > 0}
        self.template = steps.abstract_state(task.model, task.optimizer, task.mesh, **self._extras)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "compile")
        self._train: concurrent.futures.Future | None = None
        self._eval: concurrent.futures.Future | None = None

    def begin_train(self) -> None:
        """Traces the training step, and starts to compile it."""
        # Traced here: in the thread, it would take turns with all that Python does meanwhile, and the compiler would wait.
        self._train = self._thread.submit(compile_tidily, self.lower_train())

    def begin_eval(self) -> None:
        """Starts to trace and to compile the evaluation step, unless that was done before."""
        if self._eval is None:
            self._eval = self._thread.submit(lambda: compile_tidily(self.lower_eval()))

    @property
    def train_step(self) -> Callable:
        """See `steps.make_train_step`; waits for the compiler."""
        return self._train.result()

    @property
    def eval_step(self) -> Callable:
        """See `steps.make_eval_step`; waits for the compiler."""
        self.begin_eval()
        return self._eval.result()

    def close(self) -> None:
        """Gives up what has not begun to be compiled."""
        self._thread.shutdown(cancel_futures=True)

    def fresh_state(self, initialize: Callable[[dict], dict]) -> TrainState:
        """The state before the first step.

        Args:
          initialize: changes the variables of a fresh network.
        """
        task = self._task
        state = steps.init_state(task.model, task.optimizer, task.mesh, task.config.seed, **self._extras)
        state = state.replace(**initialize(state.variables))
        return state.replace(ema=jax.tree.map(jnp.copy, state.variables)) if state.ema else state

    def lower_train(self) -> jax.stages.Lowered:
        """The training step for the run's batches."""
        task, train = self._task, self._task.config.train
        step = steps.make_train_step(
            task.model,
            task.optimizer,
            task.schedule,
            task.mesh,
            label_smoothing=train.label_smoothing,
            augment=augment_of(task.config),
            grad_accum=train.grad_accum,
            ema_decay=train.ema_decay,
            polled=bool(self._polled),
        )
        images, labels, _ = self._batch()
        key = jax.eval_shape(jax.random.key, 0)
        replicated = jax.sharding.NamedSharding(task.mesh, steps.REPLICATED)
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)
        return step.lower(self.template, images, labels, key, *self._polled)

    def lower_eval(self) -> jax.stages.Lowered:
        """The evaluation step for the run's batches."""
        # The reference smooths the validation loss too, unless mixup is on; CutMix is treated alike.
        task, train = self._task, self._task.config.train
        smoothing = 0.0 if max(train.mixup_alpha, train.cutmix_alpha) > 0 else train.label_smoothing
        step = steps.make_eval_step(task.model, task.mesh, label_smoothing=smoothing, polled=bool(self._polled))
        return step.lower(self.template.variables, *self._batch(), *self._polled)

    def _batch(self) -> tuple[Any, ...]:
        """Images, labels and mask of a global batch."""
        batch, size = self._task.config.train.batch_size, self._task.config.data.image_size
        split = steps.batch_sharding(self._task.mesh)
        shapes = (((batch, size, size, 3), jnp.uint8), ((batch,), jnp.int32), ((batch,), jnp.float32))
        return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=split) for shape, dtype in shapes)
