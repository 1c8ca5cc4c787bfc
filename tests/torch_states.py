"""PyTorch state dicts of the network `tiny`, their names and shapes written by hand, and the families' names of them."""

import re

import numpy as np

CLASSES = 5
BN = ("weight", "bias", "running_mean", "running_var")


def make_state(classes=CLASSES, seed=0, dtype=np.float32):
    """A state dict with the reference's names, every value random and every BN with another count of batches."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes(classes).items():
        values = rng.standard_normal(shape)
        if len(shape) > 1:
            values *= (2 / np.prod(shape[1:])) ** 0.5  # activations keep their size
        state[name] = (values**2 + 0.5 if name.endswith("running_var") else values).astype(dtype)
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.array(100 + len(state), np.int64)
    return state


def shapes(classes=CLASSES):
    """Name and shape of every weight, in network order: 64 channels, stages of one block of 16 and two blocks of 32."""
    found = {"conv1.weight": (64, 3, 7, 7)} | {f"bn1.{leaf}": (64,) for leaf in BN}
    for name, inputs, width in (("layers.0.0", 64, 8), ("layers.1.0", 16, 16), ("layers.1.1", 32, 16)):
        outputs = 2 * width
        convolutions = ((width, inputs, 1, 1), (width, width // 4, 3, 3), (outputs, width, 1, 1))  # the second has 4 groups
        for index, shape in enumerate(convolutions, 1):
            found[f"{name}.conv{index}.weight"] = shape
            found |= {f"{name}.bn{index}.{leaf}": shape[:1] for leaf in BN}
        found |= {f"{name}.squeeze.squeeze.weight": (16, outputs), f"{name}.squeeze.squeeze.bias": (16,)}
        found |= {f"{name}.squeeze.expand.weight": (outputs, 16), f"{name}.squeeze.expand.bias": (outputs,)}
        if inputs != outputs:
            found |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1)}
            found |= {f"{name}.downsample.1.{leaf}": (outputs,) for leaf in BN}
    return found | {"fc.weight": (classes, 32), "fc.bias": (classes,)}


def as_published(state):
    """With the names of NVIDIA's 20.06 weights."""
    return {re.sub(r"^layers\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name): array for name, array in state.items()}


def with_convolutional_gates(state):
    """With gates as 1x1 convolutions."""
    gates = {name: a[:, :, None, None] for name, a in state.items() if ".squeeze." in name and a.ndim == 2}
    assert len(gates) == 6
    return state | gates


def as_timm(state):
    """With timm's names and gates."""
    state = as_published(with_convolutional_gates(state))
    fc = {"squeeze.squeeze": "se.fc1", "squeeze.expand": "se.fc2"}
    return {re.sub(r"squeeze\.(squeeze|expand)", lambda m: fc[m[0]], name): array for name, array in state.items()}


def prefixed(state, prefix="module."):
    return {prefix + name: array for name, array in state.items()}


def assert_same_states(actual, expected):
    """The same names, dtypes, shapes and bits."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype and actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name
