"""Extractors: the default one knows its kinds, and published networks give what their authors' code gives."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_diffaug.backbones.extractors import DEFAULT, extractor
from monai_diffaug.backbones.hub import shipped
from monai_diffaug.domains.medical import KINDS
from monai_diffaug.evaluation import pictures
from monai_diffaug.types import DiffAugError


def gray(n=3, size=40, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_default_is_small_its_own_and_knows_real_images_of_test_patients():
    found = extractor()
    assert DEFAULT not in shipped(), "it is no generator's judge"
    assert found.name == "medical (12 kinds of image)"
    assert len(found.digest) == 64
    right = total = 0
    for name, translate in (("mednist", lambda k: k), ("brain_mri", lambda k: "brain mri")):
        seen = pictures(name, 64)
        p = found.probabilities(seen.images)
        assert p.shape == (len(seen), 12)
        assert p.sum(1) == pytest.approx(torch.ones(len(seen)), abs=1e-4)
        right += sum(KINDS[i].startswith(translate(k)) for i, k in zip(p.argmax(1).tolist(), seen.kinds, strict=True))
        total += len(seen)
    assert right / total > 0.9
    assert found(gray()).shape == (3, 96)
    assert len(found.layers(found.fitted(gray()))) == 4


def test_it_sees_an_image_the_same_whatever_lies_beside_it():
    found = extractor()
    x = gray(5)
    assert found(x)[2] == pytest.approx(found(x[2:3])[0], abs=1e-5)


def test_color_is_seen_gray_by_a_network_that_knows_gray_and_refused_by_one_that_wants_more():
    found, x = extractor(), gray(2, 64).expand(-1, 3, -1, -1) * torch.tensor([1.0, 0.5, -0.3]).reshape(1, 3, 1, 1)
    assert found(x) == pytest.approx(found(x.mean(1, keepdim=True)), abs=1e-6)
    four = replace(found, channels=4)
    with pytest.raises(DiffAugError, match="takes 4 channels and the images have 3"):
        four(x)


# -------------------------------------------------------------------------------------- published, written otherwise


def residual_state(prefix="", planes=(8, 16, 16, 24)):
    """A bottleneck network with torchvision's names: layers of 1, 2, 1, 1 blocks."""
    g = torch.Generator().manual_seed(0)
    state = {}

    def conv(name, out, into, k):
        state[f"{name}.weight"] = torch.randn(out, into, k, k, generator=g) * (2 / (into * k * k)) ** 0.5

    def norm(name, n):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(n, generator=g)
        state[f"{name}.bias"] = 0.1 * torch.randn(n, generator=g)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(n, generator=g)
        state[f"{name}.running_var"] = 1 + 0.1 * torch.rand(n, generator=g)

    conv("conv1", planes[0], 3, 7)
    norm("bn1", planes[0])
    width = planes[0]
    for i, (p, blocks) in enumerate(zip(planes, (1, 2, 1, 1), strict=True), 1):
        for b in range(blocks):
            name = f"layer{i}.{b}"
            for k, (out, into, size) in enumerate(((p, width, 1), (p, p, 3), (4 * p, p, 1)), 1):
                conv(f"{name}.conv{k}", out, into, size)
                norm(f"{name}.bn{k}", out)
            if b == 0:
                conv(f"{name}.downsample.0", 4 * p, width, 1)
                norm(f"{name}.downsample.1", 4 * p)
            width = 4 * p
    return state


def residual_by_hand(s, x):
    def norm(y, name):
        return F.batch_norm(
            y, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"]
        )

    x = F.relu(norm(F.conv2d(x, s["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for i, blocks in enumerate((1, 2, 1, 1), 1):
        for b in range(blocks):
            name, stride = f"layer{i}.{b}", 2 if i > 1 and b == 0 else 1
            y = F.relu(norm(F.conv2d(x, s[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = F.relu(norm(F.conv2d(y, s[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2"))
            y = norm(F.conv2d(y, s[f"{name}.conv3.weight"]), f"{name}.bn3")
            if b == 0:
                x = norm(F.conv2d(x, s[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = F.relu(x + y)
    return x.mean((2, 3))


def test_radimagenet_is_fed_blue_first_and_gives_what_its_network_gives(tmp_path):
    state = residual_state()
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    named = {f"backbone.{numbers[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in state.items()}
    file = tmp_path / "RadImageNet-ResNet50_notop.pth"
    torch.save(named, file)
    x = gray(2, 64).expand(-1, 3, -1, -1) * torch.tensor([1.0, 0.5, -0.3]).reshape(1, 3, 1, 1)
    found = extractor(file)
    fitted = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False, antialias=True)
    blue_first = (fitted.flip(1) + 1) / 2 - torch.tensor([0.406, 0.456, 0.485]).reshape(1, 3, 1, 1)
    assert found(x) == pytest.approx(residual_by_hand(state, blue_first), rel=1e-4, abs=1e-5)
    folder = tmp_path / "radimagenet"
    folder.mkdir()
    torch.save(named, folder / "weights.pt")
    assert torch.equal(extractor(folder)(x), found(x))
    plain = tmp_path / "resnet50.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, plain)
    assert not torch.allclose(extractor(plain)(x), found(x)), "another network is fed as ImageNet's are"


def vit_state(width=64, depth=2, patch=8, side=4):
    g = torch.Generator().manual_seed(1)

    def draw(*shape):
        return 0.2 * torch.randn(*shape, generator=g)

    state = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, 1 + side**2, width),
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    for i in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 96, width), ("mlp.fc2", width, 96)
        ):  # fmt: skip
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = draw(out, into), draw(out)
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = 1 + draw(width), draw(width)
    return state


def vit_by_transformers(state, x):
    """The same weights under another library's names."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96, image_size=32, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    module = ViTModel(config, add_pooling_layer=False).eval()
    own = module.state_dict()
    for key in own:
        kind = key.rsplit(".", 1)[-1]
        if "layer" in key and ("attention" in key or "mlp" in key or "layernorm_" in key):
            i = next(p for p in key.split(".") if p.isdigit())
            for theirs, ours, third in (
                ("q_proj", "attn.qkv", 0), ("k_proj", "attn.qkv", 1), ("v_proj", "attn.qkv", 2),
                ("o_proj", "attn.proj", None),
                ("fc1", "mlp.fc1", None), ("fc2", "mlp.fc2", None), ("layernorm_before", "norm1", None),
                ("layernorm_after", "norm2", None),
            ):  # fmt: skip
                if theirs in key:
                    value = state[f"blocks.{i}.{ours}.{kind}"]
                    own[key] = value if third is None else value.chunk(3)[third]
        elif "cls_token" in key:
            own[key] = state["cls_token"]
        elif "position" in key:
            own[key] = state["pos_embed"]
        elif "projection" in key:
            own[key] = state[f"patch_embed.proj.{kind}"]
        else:
            own[key] = state[f"norm.{kind}"]
    module.load_state_dict(own)
    with torch.no_grad():
        return module(pixel_values=x).last_hidden_state[:, 0]


def test_biomedclip_s_folder_gives_the_embedding_of_its_image_half(tmp_path):
    state, g = vit_state(), torch.Generator().manual_seed(2)
    projection = torch.randn(12, 64, generator=g)
    whole = {f"visual.trunk.{k}": v for k, v in state.items()} | {"visual.head.proj.weight": projection}
    whole["text.transformer.embeddings.weight"] = torch.zeros(3, 3)
    torch.save(whole, tmp_path / "open_clip_pytorch_model.bin")
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    said = {"model_cfg": {"embed_dim": 12}, "preprocess_cfg": {"mean": mean, "std": std}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    x = gray(2, 32)
    fed = ((x.expand(-1, 3, -1, -1) + 1) / 2 - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(
        1, 3, 1, 1
    )
    found = extractor(tmp_path)
    assert found.size == (32, 32)
    assert found(x) == pytest.approx(vit_by_transformers(state, fed) @ projection.T, rel=1e-3, abs=1e-4)


def test_a_folder_of_timm_is_read_without_timm(tmp_path):
    from safetensors.torch import save_file

    save_file(vit_state(), tmp_path / "model.safetensors")
    said = {
        "architecture": "vit_tiny",
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]},
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    x = gray(2, 32)
    assert extractor(tmp_path)(x) == pytest.approx(
        vit_by_transformers(vit_state(), x.expand(-1, 3, -1, -1)), rel=1e-3, abs=1e-4
    )


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "clip"])
def test_folders_of_transformers_are_fed_as_they_say(tmp_path, kind):
    import transformers as t

    torch.manual_seed(0)
    made = {
        "dinov2": lambda: t.Dinov2Model(
            t.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        ),
        "resnet": lambda: t.ResNetModel(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "clip": lambda: t.CLIPModel(
            t.CLIPConfig(
                text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20},
                vision_config={
                    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
                    "patch_size": 14,
                },
                projection_dim=12,
            )
        ),
    }[kind]()  # fmt: skip
    made.eval().save_pretrained(tmp_path)
    x = gray(2, 28)
    before = extractor(tmp_path)(x)
    assert before.shape == (2, {"dinov2": 16, "resnet": 16, "clip": 12}[kind])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    found = extractor(tmp_path)
    assert not torch.allclose(found(x), before), "the preprocessor's mean counts"
    fed = found.fitted(x).expand(-1, 3, -1, -1)
    with torch.no_grad():
        whole = made.get_image_features(pixel_values=fed) if kind == "clip" else made(pixel_values=fed).pooler_output
    whole = getattr(whole, "pooler_output", whole)
    assert found(x) == pytest.approx(whole.flatten(1), rel=1e-3, abs=1e-5)


def test_what_is_none_of_these_gets_a_line(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    with pytest.raises(DiffAugError, match="no TorchScript"):
        extractor(tmp_path / "state.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffAugError, match="holds no weights"):
        extractor(tmp_path / "empty")
    state = residual_state()
    del state["layer2.0.conv2.weight"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(DiffAugError, match=r"lacks 1 weights .*layer2.0.conv2"):
        extractor(tmp_path / "short.pt")
    with pytest.raises(DiffAugError, match="medical"):
        extractor("nonesuch")
    assert extractor(nn.Flatten())(gray(2, 4)).shape == (2, 16)
