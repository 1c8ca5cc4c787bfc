"""Grad-CAM: which parts of an image speak for the class it is taken for."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcls.errors import RunError
from jaxcls.models.resnet import ResNet
from jaxcls.train.augment import normalize_images
from jaxcls.xla import jit

STRENGTH = 0.6  # of the colours over the image, where the heat is greatest


def make_grad_cam(model: ResNet) -> Callable:
    """The compiled `(variables, images, classes) -> heat`: of uint8 `[N, S, S, 3]` and int `[N]`, float `[N, h, w]`, 0 to 1.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): the feature maps of the last stage, weighted by
    the mean of the class's gradient over each map, added up, and cut off at 0. These networks end in the mean over each
    map and a dense layer, so that the gradient is the class's column of the dense layer, the same everywhere.
    """

    def grad_cam(variables, images, classes):
        last = f"stage{len(model.spec.depths)}"
        maps = model.apply(variables, normalize_images(images, model.param_dtype), train=False, features=(last,))[last]
        weights = variables["params"]["head"]["kernel"][:, classes]  # [C,N]
        heat = jax.nn.relu(jnp.einsum("nhwc,cn->nhw", maps.astype(weights.dtype), weights))
        return heat / jnp.maximum(heat.max((1, 2), keepdims=True), jnp.finfo(heat.dtype).tiny)

    return jit(grad_cam, train=False)


def save_heatmap(path: Path, picture: np.ndarray, heat: np.ndarray) -> None:
    """Saves a picture, uint8 `[S, S, 3]`, and beside it the same with the heat, `[h, w]` from 0 to 1, laid over it.

    Raises:
      RunError: the file cannot be written.
    """
    import matplotlib

    size = picture.shape[1::-1]
    heat = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colors = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    share = STRENGTH * heat[..., None]
    over = ((1 - share) * picture + share * colors).round().astype(np.uint8)
    try:
        Image.fromarray(np.concatenate([picture, over], 1)).save(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from error
