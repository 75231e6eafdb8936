"""DiffEdit's mechanism, on the exact denoiser of two classes that differ in one known region."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.primitives import guidance, plans
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import tiny
from monai_diffaug.types import NoiseSource


def spotted(dims=2, size=16, n=6):
    """Smooth pictures, each once without and once with a spot in one known box."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.functional.interpolate(
        torch.randn(n, 1, *[4] * dims, generator=generator) * 0.4,
        [size] * dims,
        mode="bilinear" if dims == 2 else "trilinear",
    ).clamp(-0.8, 0.6)
    box = torch.zeros(1, 1, *[size] * dims)
    box[(..., *[slice(4, 9)] * dims)] = 1
    images = torch.cat([plain, plain * (1 - box) + box * 0.9])
    return ideal(images, [0] * n + [1] * n, ["healthy", "tumor"], spread=0.15), images, box


@pytest.mark.parametrize("dims", [2, 3])
def test_it_finds_the_region_in_which_the_classes_differ(dims):
    backbone, images, box = spotted(dims)
    n = len(images) // 2
    made = registry.call(
        "diffedit",
        backbone,
        images[:n],
        prompt="tumor",
        source_prompt="healthy",
        steps=20,
        generator=NoiseSource(range(n)),
    )
    inside = box.expand_as(made.map) > 0
    iou = ((made.map > 0) & inside).sum() / ((made.map > 0) | inside).sum()
    assert iou > 0.9
    assert (made.image - images[n:])[inside].abs().mean() < 0.25 * (images[:n] - images[n:])[inside].abs().mean()


def test_outside_the_mask_the_image_follows_its_own_path_to_the_end():
    backbone, images, _ = spotted()
    made = registry.call("diffedit", backbone, images[:2], prompt="tumor", steps=20, generator=NoiseSource([1, 2]))
    assert torch.equal(made.image[made.map == 0], images[:2][made.map == 0])
    assert (made.image - images[:2])[made.map > 0].abs().mean() > 0.2


def test_with_a_mask_of_ones_it_is_decoding_of_the_inverted_image():
    backbone = tiny("text", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    words = "a large head ct"
    made = registry.call(
        "diffedit", backbone, image, prompt=words, mask=torch.ones_like(image), steps=6, generator=NoiseSource([1, 2])
    )
    plan = plans.ddim(backbone.schedule, 6, strength=0.7)
    z = invert(backbone.denoiser(backbone.condition(2)), backbone.encode(image), plan)
    told = guidance.classifier_free(backbone, backbone.condition(2, prompt=words), 7.5)
    assert torch.equal(made.image, backbone.decode(sample(told, z.latent, z.plan)))


def test_guidance_would_not_change_the_mask():
    """Guided noises differ by the weight times what plain ones differ by, and the scaling divides by the mean."""
    from monai_diffaug.primitives import masks

    backbone, images, _ = spotted()
    level = backbone.schedule.at_log_snr(-0.48)
    conditions = [backbone.condition(2, prompt=p) for p in ("tumor", "healthy")]

    def mask(scale):
        return masks.from_noise_difference(
            backbone,
            images[:2],
            *(guidance.classifier_free(backbone, c, scale) for c in conditions),
            level,
            NoiseSource([3, 4]),
        )

    assert torch.equal(mask(1.0), mask(7.5))


def test_more_draws_and_a_higher_threshold_are_obeyed():
    backbone, images, _ = spotted()
    sizes = [
        registry.call(
            "diffedit",
            backbone,
            images[:2],
            prompt="tumor",
            threshold=t,
            draws=3,
            steps=4,
            generator=NoiseSource([1, 2]),
        ).map.mean()
        for t in (0.05, 0.5, 0.99)
    ]
    assert sizes[0] > sizes[1] >= sizes[2] > 0
