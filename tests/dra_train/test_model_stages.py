"""The image feature from all stages of a CNN."""

import pytest
import torch

from dra_runtime.errors import CheckpointError
from dra_train.backbones import model_config, untrained_model
from dra_train.model import DRA


def model_of(backbone: str) -> DRA:
    return untrained_model(model_config(backbone, image_stages="all"))


def by_hand(model: DRA, image: torch.Tensor) -> torch.Tensor:
    """Run the tower stage by stage, as its authors wrote it, and take numpy's mean and standard deviation."""
    visual = model.visual
    if hasattr(visual, "trunk"):
        x, stages = visual.trunk.bn1(visual.trunk.conv_stem(image)), list(visual.trunk.blocks)
    else:
        x, stages = visual.stem(image), [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x.numpy())
    means = [m.mean(axis=(2, 3)) for m in maps]
    return torch.cat([torch.from_numpy(a) for a in (*means, *(m.std(axis=(2, 3)) for m in maps))], dim=1)


@pytest.mark.parametrize("backbone", ["demo", "tiny-resnet"])
@torch.no_grad()
def test_the_feature_is_the_towers_own_plus_a_projection_of_every_stages_mean_and_spread(backbone: str) -> None:
    model = model_of(backbone)
    last = untrained_model(model_config(backbone))
    image = torch.randn(3, 3, model.preprocess.image_size, model.preprocess.image_size)
    frozen = model.image_trunk(image)
    statistics = by_hand(model, image)
    assert statistics.shape[1] == model.stage_projection.mean.shape[0]
    torch.testing.assert_close(frozen.pooled[:, -statistics.shape[1] :], statistics, rtol=1e-4, atol=1e-4)

    last.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("stage_projection.")})
    own, tokens = last.encode_image(image)
    features, same_tokens = model.encode_image(image)
    expected = own + statistics @ model.stage_projection.linear.weight.T
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(same_tokens, tokens)


@torch.no_grad()
def test_training_images_give_the_scale_once() -> None:
    model = model_of("tiny-resnet")
    size = model.preprocess.image_size
    pooled = model.image_trunk(torch.randn(16, 3, size, size)).pooled
    model.standardize(pooled)
    statistics = model.stage_projection.split(pooled)[1]
    scaled = (statistics - model.stage_projection.mean) / model.stage_projection.spread
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(scaled.shape[1]), atol=1e-3, rtol=0)
    assert 0.9 < scaled.std(dim=0).median() < 1.1
    before = model.stage_projection.mean.clone()
    model.standardize(2 * pooled)  # trained weights depend on the first scale
    assert torch.equal(model.stage_projection.mean, before)


def test_a_tower_without_stages_is_refused() -> None:
    with pytest.raises(CheckpointError, match="needs a CNN with stages"):
        model_of("tiny-vit")
    with pytest.raises(CheckpointError, match="unknown; use last or all"):
        model_config("tiny-resnet", image_stages="some")
