import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcls
from jaxcls.errors import RunError
from jaxcls.heatmaps import make_grad_cam, save_heatmap
from jaxcls.train.augment import normalize_images


def test_grad_cam_is_what_the_gradients_say():
    """The gradient of a class's logit by the last stage's maps, taken through a change that is added to them."""
    model = jaxcls.create_model("tiny", num_classes=5)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    kernel = jax.random.normal(jax.random.key(1), variables["params"]["head"]["kernel"].shape)
    head = variables["params"]["head"] | {"kernel": kernel}
    variables = {**variables, "params": variables["params"] | {"head": head}}
    classes = jnp.array([4, 0, 2])
    last = f"stage{len(model.spec.depths)}"
    maps = model.apply(variables, normalize_images(images, jnp.float32), train=False, features=(last,))[last]

    def logits(maps):
        return (maps.mean((1, 2)) @ head["kernel"] + head["bias"])[jnp.arange(3), classes].sum()

    whole = model.apply(variables, normalize_images(images, jnp.float32), train=False)
    np.testing.assert_allclose(logits(maps), whole[jnp.arange(3), classes].sum(), rtol=1e-4)
    weights = jax.grad(logits)(maps).mean((1, 2))  # equation 1
    expected = jax.nn.relu((maps * weights[:, None, None]).sum(-1))  # equation 2
    expected /= expected.max((1, 2), keepdims=True)
    heat = make_grad_cam(model)(variables, images, classes)
    assert heat.shape == (3, *maps.shape[1:3]) and float(heat.max()) == 1 and float(heat.min()) == 0
    np.testing.assert_allclose(heat, expected, atol=1e-5)


def test_an_image_that_nothing_speaks_for_stays_as_it_is(tmp_path):
    model = jaxcls.create_model("tiny", num_classes=2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    variables = jax.tree.map(jnp.zeros_like, variables)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (heat,) = make_grad_cam(model)(variables, picture[None], np.zeros(1, int))
    assert not heat.any()
    save_heatmap(tmp_path / "heat.png", picture, np.asarray(heat))
    saved = np.asarray(Image.open(tmp_path / "heat.png"))
    assert np.array_equal(saved, np.concatenate([picture, picture], 1))
    with pytest.raises(RunError, match=r"cannot be written \(No such file"):
        save_heatmap(tmp_path / "none" / "heat.png", picture, np.asarray(heat))


def test_the_heat_lies_where_it_was_found(tmp_path):
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    save_heatmap(tmp_path / "heat.png", np.full((32, 32, 3), 100, np.uint8), heat)
    changed = np.abs(np.asarray(Image.open(tmp_path / "heat.png")).astype(int)[:, 32:] - 100).sum(-1)
    assert changed[:8, 24:].mean() > 20 * max(changed[16:].mean(), changed[:, :16].mean())
