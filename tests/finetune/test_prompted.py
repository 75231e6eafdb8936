"""A folder in Stable Diffusion's format is fine-tuned, fully or by an adapter, and is one again."""

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.finetune.prompted import finetune_on_prompts, in_channels_of, write
from monai_diffaug.primitives import concepts
from monai_diffaug.types import DiffAugError
from tests.finetune.stable_diffusion import stable_diffusion


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return hub.load(stable_diffusion(tmp_path_factory.mktemp("sd")))


def pairs(n=8):
    """Gray films, bright on the left or on the right, and words for it."""
    ramp = torch.linspace(-1, 1, 16).expand(1, 16, 16)
    return [{"image": ramp if i % 2 else -ramp, "prompt": "film, left dark" if i % 2 else "film"} for i in range(n)]


def taught(start, folder, mode, steps=50):
    return finetune_on_prompts(
        start, pairs(), folder, mode=mode, steps=steps, batch=4, rate=3e-3, precision=torch.float32
    )


def weights(backbone):
    return {f"{p}.{k}": v.clone() for p, m in backbone.modules().items() for k, v in m.state_dict().items()}


def test_fully_and_diffusers_loads_it_again(start, tmp_path):
    before = weights(start)
    made = taught(start, tmp_path / "run", "full")
    assert made.log[-1]["loss"] < 0.5 * made.log[0]["loss"]
    after = weights(made.backbone)
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"network", "conditioner"}  # the text encoder as well; the autoencoder stays
    assert all(torch.equal(before[k], v) for k, v in weights(start).items())
    folder = write(made, tmp_path / "model")

    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    films = pipeline("film", num_inference_steps=2, output_type="np").images
    assert films.shape == (1, 16, 16, 3)
    assert type(DiffusionPipeline.from_pretrained(folder)) is StableDiffusionPipeline
    again = hub.load(folder)
    x = torch.randn(1, 4, 8, 8)
    told = [b.condition(1, prompt="film, left dark") for b in (made.backbone, again)]
    torch.testing.assert_close(again.output(x, 300.0, told[1]), made.backbone.output(x, 300.0, told[0]))
    expected = pipeline.unet(x, 300.0, encoder_hidden_states=told[1].tokens).sample
    torch.testing.assert_close(again.output(x, 300.0, told[1]), expected, atol=1e-5, rtol=1e-4)


def test_by_an_adapter_the_weights_stay_and_little_is_written(start, tmp_path):
    before = weights(start)
    made = taught(start, tmp_path / "run", "lora")
    assert made.log[-1]["loss"] < 0.8 * made.log[0]["loss"]
    assert all(torch.equal(before[k], v) for k, v in weights(start).items())
    file = write(made, tmp_path / "model")
    whole = sum(v.numel() * v.element_size() for v in before.values())
    assert file.name == "adapter.safetensors"
    assert file.stat().st_size < 0.5 * whole
    x, told = torch.randn(1, 4, 8, 8), start.condition(1, prompt="film")
    with concepts.applied(start, file) as adapted:
        new = adapted.output(x, 300.0, told)
    torch.testing.assert_close(new, made.backbone.output(x, 300.0, told), atol=2e-2, rtol=2e-2)  # half precision
    assert float((new - start.output(x, 300.0, told)).abs().max()) > 0.05


def test_a_run_goes_on_where_it_was(start, tmp_path):
    whole = taught(start, tmp_path / "a", "full", steps=4)
    taught(start, tmp_path / "b", "full", steps=4)
    again = taught(start, tmp_path / "b", "full", steps=4)  # nothing is left to do
    assert all(torch.equal(v, weights(again.backbone)[k]) for k, v in weights(whole.backbone).items())


def test_gray_films_become_red_green_and_blue_alike(start):
    gray = torch.randn(1, 16, 16)
    assert torch.equal(in_channels_of(gray, start.contract), gray.expand(3, 16, 16))
    with pytest.raises(DiffAugError, match=r"an image is \(20, 16\) and the backbone takes \(16, 16\): fit it"):
        in_channels_of(torch.zeros(1, 20, 16), start.contract)
    with pytest.raises(DiffAugError, match="2 channels and the backbone takes 3"):
        in_channels_of(torch.zeros(2, 16, 16), start.contract)


def test_what_cannot_be_trained_is_refused(start, tmp_path):
    with pytest.raises(DiffAugError, match="use full or lora"):
        finetune_on_prompts(start, pairs(), tmp_path, mode="half")
    with pytest.raises(DiffAugError, match="is told no prompts"):
        finetune_on_prompts(hub.load("brain_mri"), pairs(), tmp_path)
