"""The picture of queries and answers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from dra_bench.picture import ANSWERS_X, FRAME, GAP, HEADER, MARGIN, RIGHT, ROW, THUMB, WIDTH, draw_queries, thumbnail
from dra_bench.shown import Picture, ShownQuery


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for name in ("red", "green", "blue", "gold", "black", "white"):
        paths.append(Picture(name, tmp_path / f"{name}.png"))
        Image.new("RGB", (30, 20), name).save(paths[-1].path)
    return paths


def shown(pictures, target, rank, text="in blue"):
    return ShownQuery(1, text, "", pictures[0], target, tuple(pictures[1:]), rank)


def frames(picture, row=0):
    """Tell for each answer of a row whether a frame stands at the middle of its upper edge."""
    top = HEADER + MARGIN // 2 + row * ROW + 6
    middles = [ANSWERS_X + i * (THUMB + GAP) + THUMB // 2 for i in range(5)]
    return [picture.getpixel((x, top - FRAME // 2 - 1)) == ImageColor.getrgb(RIGHT) for x in middles]


def test_the_right_answer_alone_is_framed(pictures):
    picture = draw_queries([shown(pictures, pictures[2], 2), shown(pictures, pictures[5], 5)], "caption")
    assert frames(picture, 0) == [False, True, False, False, False]
    assert frames(picture, 1) == [False, False, False, False, True]


def test_a_miss_has_no_frame_and_says_where_the_right_one_came(pictures):
    elsewhere = Picture("elsewhere", Path("unused"))
    miss = draw_queries([shown(pictures, elsewhere, 17)], "caption")
    assert frames(miss) == [False] * 5
    other = draw_queries([shown(pictures, elsewhere, 18)], "caption")
    assert np.any(np.asarray(miss) != np.asarray(other))  # the rank is written


@pytest.mark.parametrize("text", ["x" * 4000, "many words " * 300, "你好 " * 200, "\x00\n\t", "“é” ½ 🙂"])
def test_hostile_texts_stay_in_their_column(pictures, text):
    query = shown(pictures, pictures[1], 1, text)
    picture, reference = (np.asarray(draw_queries([q], "c")) for q in (query, shown(pictures, pictures[1], 1, "")))
    assert picture.shape == reference.shape
    np.testing.assert_array_equal(picture[:, ANSWERS_X - 12 :], reference[:, ANSWERS_X - 12 :])


def test_the_picture_is_as_wide_as_promised_and_grows_with_its_rows(pictures):
    one, three = (draw_queries([shown(pictures, pictures[1], 1)] * n, "caption") for n in (1, 3))
    assert one.width == three.width == WIDTH
    assert three.height - one.height == 2 * ROW


def test_thumbnails_keep_the_shape_and_put_transparency_on_white(tmp_path):
    Image.new("RGBA", (80, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (80, 20), "red").save(tmp_path / "wide.png")
    assert np.asarray(thumbnail(tmp_path / "clear.png", 40)).min() == 255
    wide = np.asarray(thumbnail(tmp_path / "wide.png", 40))
    red = (wide == [255, 0, 0]).all(axis=2)
    assert red.any(axis=1).sum() == 10
    assert red.any(axis=0).sum() == 40
