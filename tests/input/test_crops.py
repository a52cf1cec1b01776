import io
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from cxrjax.input import crops


def picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def across(height=90, width=120):
    """Grey value = column, so a cut piece tells where it was and whether it was mirrored."""
    return np.tile(np.arange(width, dtype=np.uint8), (height, 1))


def encoded(image, extension=".jpg"):
    return cv2.imencode(extension, image)[1].tobytes()


def test_decode_gives_the_stored_pixels():
    image = picture(40, 52)
    np.testing.assert_array_equal(crops.decode(encoded(image, ".png")), image)
    assert crops.decode(encoded(image)).shape == (40, 52)


def test_decode_leaves_a_noted_rotation_alone():
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(across()).save(file, "JPEG", exif=turned, quality=100)
    assert crops.decode(file.getvalue()).shape == (90, 120)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.99])
def test_cut_pictures_are_refused(extension, keep):
    whole = encoded(picture(64, 64), extension)
    with pytest.raises(crops.Undecodable, match="not a whole PNG or JPEG"):
        crops.decode(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])


def test_opencv_runs_on_the_calling_thread_only():
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(("height", "width", "px", "resized"), [(90, 120, 60, (60, 80)), (50, 31, 62, (100, 62))])
def test_fit_is_resize_then_middle(height, width, px, resized):
    image = picture(height, width)
    rule = cv2.INTER_AREA if px < min(height, width) else cv2.INTER_CUBIC
    expected = cv2.resize(image, resized[::-1], interpolation=rule)
    np.testing.assert_array_equal(crops.resize_short(image, px), expected)
    top, left = (resized[0] - px) // 2, (resized[1] - px) // 2
    np.testing.assert_array_equal(crops.fit(image, px), expected[top : top + px, left : left + px])


@pytest.mark.parametrize(
    ("px", "resized"), [((60, 30), (60, 80)), ((45, 90), (68, 90)), ((120, 40), (120, 160)), ((60, 80), (60, 80))]
)
def test_fit_to_what_is_no_square_covers_it(px, resized):
    """A picture of 90 x 120; the middle of the smallest size that has both sides."""
    image, (height, width) = picture(90, 120), px
    rule = cv2.INTER_AREA if resized[0] < 90 else cv2.INTER_CUBIC
    expected = cv2.resize(image, resized[::-1], interpolation=rule)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    expected = expected[top : top + height, left : left + width]
    np.testing.assert_array_equal(crops.fit(image, px), expected)
    np.testing.assert_array_equal(crops.fit_as(image, list(px), "image20"), expected)  # 20 would not cover it
    np.testing.assert_array_equal(crops.transform("none", px)(image, np.random.default_rng(0)), expected)


def test_other_fits_to_what_is_no_square():
    image = np.full((90, 120), 200, np.uint8)
    padded = crops.fit_as(image, (60, 40), "padded")
    inside = np.zeros((60, 40), bool)
    inside[15:45] = True  # 30 x 40
    np.testing.assert_array_equal(padded, np.where(inside, 200, 0))
    np.testing.assert_array_equal(crops.fit_as(image.T, (40, 60), "padded"), padded.T)
    assert crops.fit_as(across(90, 120), (60, 40), "whole").shape == (60, 40)
    larger = crops.fit_as(picture(90, 120), (40, 60), "image80")
    expected = cv2.resize(picture(90, 120), (107, 80), interpolation=cv2.INTER_AREA)[20:60, 23:83]
    np.testing.assert_array_equal(larger, expected)


def test_views_that_are_no_squares_keep_the_aspect_of_what_they_show():
    """At ratio 1 a window of 40 x 80 px is seen in 20 x 40; columns and rows shrink alike."""
    across_, down = across(160, 160), across(160, 160).T
    spec = crops.Crop((20, 40), scale=(0.125, 0.125), ratio=(1, 1))
    for seed in range(5):
        seen = [crops.crop(image, np.random.default_rng(seed), spec).astype(int) for image in (across_, down)]
        assert seen[0].shape == (20, 40)
        assert np.ptp(seen[0]) == pytest.approx(2 * np.ptp(seen[1]), abs=4)
    stacked = crops.views(across_, np.random.default_rng(0), spec, spec._replace(px=[20, 40]))
    assert stacked.shape == (2, 20, 40, 1)


def test_pad_crop_of_what_is_no_square():
    image = np.full((70, 70), 200, np.uint8)
    change, found = crops.transform("pad_crop", (56, 28)), []
    for seed in range(60):
        cut = change(image, np.random.default_rng(seed))  # 32 x 32 in the middle of 64 x 32, then 56 x 28 of it
        assert cut.shape == (56, 28) and (cut.sum(axis=0) == 32 * 200).all()
        found.append(int(cut[:, 0].argmax()))
    assert (min(found), max(found)) == (8, 16)


def test_fit_keeps_a_picture_that_fits_already():
    image = picture(32, 32)
    np.testing.assert_array_equal(crops.fit(image, 32), image)


def test_fit_keeps_masks_binary_and_on_their_picture():
    image = np.zeros((90, 120), np.uint8)
    image[20:60, 33:80] = 255
    mask = crops.fit(image, 37, nearest=True)
    assert set(np.unique(mask)) == {0, 255}
    # Any shift of the mask against its picture would show as a disagreement along an edge.
    assert np.mean((crops.fit(image, 37) > 127) != (mask > 127)) < 0.01


def test_center_crop_refuses_a_small_picture():
    with pytest.raises(ValueError, match="64 x 64 px out of a picture of 90 x 63"):
        crops.center_crop(picture(90, 63), 64)


def test_crops_keep_to_scale_ratio_and_picture():
    rng = np.random.default_rng(0)
    windows = np.array([crops.random_window(300, 400, rng, (0.2, 0.6), (0.75, 4 / 3)) for _ in range(2000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    area, ratio = height * width / (300 * 400), width / height
    assert 0.19 < area.min() < 0.21 and 0.58 < area.max() < 0.61
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.02
    # Every place is as likely as any other, edges included.
    place = left / np.maximum(400 - width, 1)
    assert abs(place.mean() - 0.5) < 0.03 and place.min() == 0 and place.max() == 1
    # A ratio is of width to height.
    wide = np.array([crops.random_window(300, 400, rng, (0.2, 0.3), (1.5, 2.0)) for _ in range(50)])
    assert 1.45 < (wide[:, 3] / wide[:, 2]).min() and (wide[:, 3] / wide[:, 2]).max() < 2.05


def test_crop_is_its_window_resized():
    image = picture(300, 400)
    top, left, height, width = crops.random_window(300, 400, np.random.default_rng(5), (0.3, 0.5), crops.RATIO)
    assert height > 64 and width > 64
    expected = cv2.resize(image[top : top + height, left : left + width], (64, 64), interpolation=cv2.INTER_AREA)
    cut = crops.random_resized_crop(image, np.random.default_rng(5), 64, (0.3, 0.5))
    np.testing.assert_array_equal(cut, expected)


def test_crop_of_a_strip_falls_back_to_its_middle():
    assert crops.random_window(20, 400, np.random.default_rng(0), (0.9, 1.0), (0.75, 4 / 3)) == (0, 186, 20, 27)
    assert crops.random_window(400, 21, np.random.default_rng(0), (0.9, 1.0), (0.75, 4 / 3)) == (186, 0, 28, 21)


def test_hflip_mirrors_half_of_the_time():
    rng = np.random.default_rng(0)
    image = across()
    mirrored = [crops.hflip(image, rng)[0, 0] == 119 for _ in range(400)]
    assert 160 < sum(mirrored) < 240
    assert np.array_equal(crops.hflip(image, np.random.default_rng(2)), image[:, ::-1])  # draws 0.26


def test_turned_window_matches_pillow_and_takes_its_corners_from_around_it():
    image = picture(120, 160)
    top, left, height, width = 30, 50, 48, 64
    middle = (left + width / 2, top + height / 2)  # Pillow counts from the pixels' edges
    for degrees in (-12.0, 7.5, 90.0):
        whole = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR, center=middle)
        expected = np.asarray(whole)[top : top + height, left : left + width].astype(int)
        found = crops._turned(image, top, left, height, width, degrees)
        assert np.abs(found - expected).max() <= 2  # OpenCV before 5 interpolates in steps of 1/32 px


def test_turned_picture_is_mirrored_at_its_edge_and_never_black():
    ramp = across(80, 80) + np.uint8(100)
    found = crops._turned(ramp, 0, 0, 80, 80, 10.0)
    assert found.min() >= 100
    np.testing.assert_array_equal(crops._turned(ramp, 0, 0, 80, 80, 0.0), ramp)


def test_angles_are_uniform_both_ways():
    ramp = across(120, 120)
    rng = np.random.default_rng(0)
    spec = crops.Crop(60, scale=(0.25, 0.25), ratio=(1, 1), rotation_degrees=10)
    angles = []
    for _ in range(400):
        down, right = np.gradient(crops.crop(ramp, rng, spec).astype(float))
        angles.append(np.degrees(np.arctan2(down[5:-5, 5:-5].mean(), right[5:-5, 5:-5].mean())))
    assert -10.5 < min(angles) < -9 and 9 < max(angles) < 10.5
    assert abs(np.mean(angles)) < 1 and np.std(angles) == pytest.approx(10 / 3**0.5, rel=0.08)


def test_crops_are_independent_views_in_the_order_of_their_specs():
    image = picture(120, 160)
    whole = crops.Crop(32, scale=(1, 1), ratio=(4 / 3, 4 / 3))
    mirrored, small = whole._replace(flip=1.0), whole._replace(scale=(0.1, 0.2))
    found = crops.views(image, np.random.default_rng(0), whole, mirrored, small, small)
    assert found.shape == (4, 32, 32, 1) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, ..., 0], cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(found[1], found[0, :, ::-1])
    assert not np.array_equal(found[2], found[3])
    rng = np.random.default_rng(0)
    again = np.concatenate([crops.views(image, rng, whole, mirrored), crops.views(image, rng, small, small)])
    np.testing.assert_array_equal(found, again)


def test_crops_keep_the_heart_on_its_side_unless_asked():
    rng = np.random.default_rng(0)
    spec = crops.Crop(16, rotation_degrees=8)
    assert all(cut[0, 0, 0] < cut[0, -1, 0] for cut in crops.views(across(120, 120), rng, *100 * [spec]))


def test_crops_of_several_sizes_and_shares_above_one_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"crops of \[32, 16\] px cannot be stacked.*once for every size"):
        crops.views(picture(40, 40), rng, crops.Crop(32), crops.Crop(16))
    with pytest.raises(ValueError, match=r"crops of \[\] px"):
        crops.views(picture(40, 40), rng)
    for scale in ((20, 100), (0.0, 1.0), (0.8, 0.2)):
        with pytest.raises(ValueError, match=r"share of the picture's area, in \(0, 1\]; got"):
            crops.views(picture(40, 40), rng, crops.Crop(16, scale=scale))


@pytest.mark.parametrize(("kind", "mirrors"), [("mild", False), ("crop_flip", True)])
def test_random_kinds_differ_in_mirroring_and_area(kind, mirrors):
    change = pickle.loads(pickle.dumps(crops.transform(kind, 32)))
    rng = np.random.default_rng(0)
    cut = [change(across(120, 120), rng).astype(int) for _ in range(200)]
    assert all(image.shape == (32, 32) for image in cut)
    assert any(image[0, 0] > image[0, -1] for image in cut) == mirrors
    narrowest = min(abs(image[0, -1] - image[0, 0]) for image in cut) / 120
    assert narrowest > 0.55 if kind == "mild" else narrowest < 0.5
    again = change(across(120, 120), np.random.default_rng(0))
    np.testing.assert_array_equal(again, cut[0])
    assert change(across(120, 120), rng).dtype == np.uint8


def test_kind_none_is_fit_and_draws_nothing():
    rng = np.random.default_rng(0)
    image = picture(70, 90)
    np.testing.assert_array_equal(crops.transform("none", 32)(image, rng), crops.fit(image, 32))
    assert rng.random() == np.random.default_rng(0).random()


def test_pad_crop_keeps_the_shape_of_things_on_black():
    """MGCA's: 512 × 400 px to 256 × 200 between 28 columns of zeros on either side, and 224 px of that."""
    image = np.full((512, 400), 200, np.uint8)
    image[:, 200:] = 100
    change, rng = pickle.loads(pickle.dumps(crops.transform("pad_crop", 224))), np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        cut = change(image, rng)
        assert cut.shape == (224, 224) and (cut == cut[:1]).all()
        edge = int((cut[0] == 200).argmax()), int((cut[0] == 100).argmax())
        starts.add(edge)
        assert edge[1] == 128 - (28 - edge[0]) or edge[0] == 0
    assert min(starts)[0] == 0 and max(starts) == (28, 128) and len(starts) > 25
    assert crops.transform("pad_crop", 32)(picture(20, 90), rng).shape == (32, 32)


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(
        ValueError,
        match="'strong' is not known; choose one of 'none', 'pad_crop', 'mild', 'crop_flip', 'crop_turn_flip'",
    ):
        crops.transform("strong", 32)


def test_sixteen_bits_are_kept_or_cut_to_their_upper_eight():
    deep = np.arange(0, 65536, 64, np.uint16).reshape(32, 32)
    png = cv2.imencode(".png", deep)[1].tobytes()
    np.testing.assert_array_equal(crops.decode(png), deep >> 8)
    np.testing.assert_array_equal(crops.decode(png, bits=16), deep)
    shallow = cv2.imencode(".png", (deep >> 8).astype(np.uint8))[1].tobytes()
    np.testing.assert_array_equal(crops.decode(shallow, bits=16), (deep >> 8) * 257)
    assert crops.decode(shallow).dtype == np.uint8 and crops.decode(png).dtype == np.uint8
