"""Presets, overrides, and one line for a setting that can't be."""

from importlib.resources import files
from pathlib import Path

import pytest

from dra_runtime.errors import UsageError
from dra_train.backbones import model_config
from dra_train.settings import load_settings, preset_names


def test_demo_is_a_preset() -> None:
    assert "demo" in preset_names()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_describes_a_model(preset: str) -> None:
    settings = load_settings(preset)
    assert model_config(**settings.model).backbone == settings.model["backbone"]
    assert settings.to_dict()["stage2"]["train"]


def test_overrides_reach_every_section_and_keep_their_types() -> None:
    settings = load_settings(
        "demo",
        [
            "stage1.epochs=7",
            "stage2.learning_rate=2e-5",
            'stage2.train=["combiner", "tac"]',
            "loss.views=plain",
            'model.backbone="tiny-vit"',
            "model.share_streams=true",
            "train_split=other",
        ],
    )
    assert settings.stage1.epochs == 7
    assert settings.stage2.learning_rate == 2e-5
    assert settings.stage2.train == ("combiner", "tac")
    assert settings.loss.views == "plain"
    assert settings.model["backbone"] == "tiny-vit"
    assert settings.model["share_streams"] is True
    assert settings.train_split == "other"
    assert load_settings("demo").stage1.epochs != 7  # nothing is kept between runs


def test_settings_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(files("dra_train").joinpath("presets/demo.toml").read_text() + "\n# a copy\n")
    assert load_settings(str(path)) == load_settings("demo")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage2.epoch=3", "isn't SECTION.KEY=VALUE with a known key; there is epochs"),
        ("stage9.epochs=3", "there is dataset"),
        ("epochs=3", "with a known key"),
        ("stage2.epochs", "SECTION.KEY=VALUE"),
        ("stage2.epochs=-1", "epochs -1"),
        ("stage2.epochs=many", "epochs 'many'"),
        ("stage2.epochs=1.5", "epochs 1.5"),
        ("stage1.batch_size=0", "batch_size 0"),
        ("stage1.learning_rate=0", "learning_rate must be"),
        ("stage1.learning_rate=nan", "learning_rate must be"),
        ("stage1.weight_decay=much", "weight_decay"),
        ('stage2.train=["combiner", "eyes"]', "unknown part eyes in train; use text, image_head, combiner, tac"),
        ("loss.views=neither", "loss.views is one of both, compensated, plain"),
        ("loss.negatives=all", "loss.negatives one of batch, gallery"),
        ("loss.logit_scale=-1", "loss.logit_scale must be"),
        ("loss.implicit_weight=true", "loss.implicit_weight"),
        ("loss.feature_noise=-0.1", "loss.feature_noise must be"),
        ("stage1=3", "a setting is missing or unknown"),
        ("model=demo", "lacks its backbone"),
        ("model.backbone=4", "lacks its backbone"),
    ],
)
def test_settings_that_cannot_be_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_settings("demo", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset = ", "can't be read as TOML"),
        ("dataset = 'builtin'", "a setting is missing or unknown: missing 5 .*'loss'"),
    ],
)
def test_settings_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_settings(str(path))
    with pytest.raises(UsageError, match="can't be read as TOML"):
        load_settings(str(tmp_path / "none.toml"))


def test_unknown_presets_backbones_and_model_options_list_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"preset 'imagenet' is unknown; use .*demo.* or a \.toml file"):
        load_settings("imagenet")
    with pytest.raises(UsageError, match=r"backbone 'RN50x99' is unknown; use demo, tiny-resnet, .*RN50x4"):
        model_config("RN50x99")
    with pytest.raises(UsageError, match=r"a model option is unknown: .*tac_depth"):
        model_config("tiny-resnet", tac_depth=3)
