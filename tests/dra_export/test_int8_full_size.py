"""The real towers in INT8: what ONNX Runtime makes of them, and how near they stay without any training of the heads.

Recall needs a trained model; `dra-export onnx --precision int8` measures it on every export.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_nets import optimized_ops

from dra_export.graphs import graphs_of
from dra_export.int8.measure import cosines, image_features
from dra_export.int8.session import open_session
from dra_export.int8.tower import by_sensitivity, calibrated_tower
from dra_export.onnx_from_model import write_onnx
from dra_runtime.preprocess import open_image
from dra_train.backbones import model_config, untrained_model
from dra_train.data import builtin_dataset, load_cirr


# RN50x4 with random weights amplifies whatever reaches it: noise of a 500th of the pixels' spread turns a vector by a
# cosine of 0.97, so the cosine only tells here that the graph isn't broken.
@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "convolutions", "least"), [("demo", 49, 0.9), ("RN50x4", 85, 0.5)])
def test_a_full_size_tower_stays_in_int8_and_near(
    backbone: str, convolutions: int, least: float, tmp_path: Path
) -> None:
    model = untrained_model(model_config(backbone))
    graph = next(graph for graph in graphs_of(model) if graph.name == "image_encoder")
    write_onnx(graph, tmp_path / "image_encoder.onnx")
    calibration = list(load_cirr(builtin_dataset(), "train").images.values())[::60][:16]
    probes = list(load_cirr(builtin_dataset(), "val").images.values())[::40][:8]
    tower = calibrated_tower(
        onnx.load(tmp_path / "image_encoder.onnx"), calibration, probes, model.preprocess, threads=2
    )
    assert max(tower.tried.values()) == tower.tried[tower.method] >= least

    int8 = tower.int8()
    kinds = optimized_ops(int8, str(tmp_path))
    assert kinds.count("QLinearConv") == convolutions
    assert not {"Conv", "FusedConv", "Clip", "AveragePool"} & set(kinds)
    if backbone == "demo":
        losses = [loss for _, loss in by_sensitivity(tower, probes, model.preprocess, threads=2)]
        assert losses == sorted(losses, reverse=True)
        assert len(losses) == len(tower.blocks) > 20
        session = open_session(int8.SerializeToString(), 2)
        whole = image_features(session, probes, model.preprocess, 2, "test")
        alone = [
            session.run(["image_features"], {"image": model.preprocess(open_image(path))[None]})[0] for path in probes
        ]
        # Fixed ranges: an image's vector doesn't depend on its batch
        assert cosines(whole, np.concatenate(alone))["smallest"] > 0.99999
        half = tower.int8(tower.blocks[: len(tower.blocks) // 2])
        assert optimized_ops(half, str(tmp_path)).count("QLinearConv") < convolutions
