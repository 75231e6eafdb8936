"""The plain U-Net beside a diffusion model."""

import torch
from monai.networks.nets import DiffusionModelUNet

from monai_diffaug.primitives.regression import RegressionStage, regressed
from monai_diffaug.primitives.runs import Draws, Settings


def unet():
    torch.manual_seed(0)
    return DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8), attention_levels=(False, False),
        num_res_blocks=1, num_head_channels=8, norm_num_groups=4,
    )  # fmt: skip


def test_it_starts_as_the_identity_and_learns_to_denoise():
    module = unet()
    images = torch.nn.functional.avg_pool2d(torch.randn(16, 1, 20, 20), 5, 1) * 2
    source = images + 0.2 * torch.randn_like(images)
    torch.testing.assert_close(regressed(module, source), source)
    settings = Settings(steps=40, batch=8, lr=3e-3, warmup=2, ema=0.5, precision=torch.float32)
    stage = RegressionStage(module, settings, held_out=[{"image": images[8:], "source": source[8:]}])
    before = stage.check(0)["held_out_psnr"]
    for step in range(40):
        stage.step({"image": images[:8], "source": source[:8]}, step, Draws.of(0, step))
    stage.finish()
    assert stage.check(40)["held_out_psnr"] > before + 1.0
