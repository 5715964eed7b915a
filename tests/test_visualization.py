"""Pictures, looked at pixel by pixel."""

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from refinedet_tf.visualization import class_color, draw_detections, save_gallery
from refinedet_tf.visualization.curves import save_loss_curves
from refinedet_tf.visualization.labels import _contrasting, place_labels

NAMES = ["cat", "dog", "person"]
GRAY = 90


def gray(height=200, width=300):
    return np.full([height, width, 3], GRAY, np.uint8)


def draw(boxes, classes, scores=None, image=None):
    return draw_detections(gray() if image is None else image, boxes, classes, scores, class_names=NAMES)


def changed(picture):
    return np.any(picture != GRAY, axis=-1)


def extent(mask):
    """First and last row and column of a mask: (top, left, bottom, right)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])


def test_border_has_the_color_of_the_class_and_nothing_else_changes():
    picture = draw([[0.2, 0.4, 0.8, 0.9]], [1])
    color = class_color(1)
    # 60 to 239 across and 80 to 179 down are inside the box.
    assert np.all(picture[80:82, 60:240] == color) and np.all(picture[178:180, 60:240] == color)
    assert np.all(picture[80:180, 60:62] == color) and np.all(picture[80:180, 238:240] == color)
    touched = changed(picture)
    assert not touched[82:178, 62:238].any()
    assert not touched[180:].any() and not touched[:, :60].any() and not touched[:, 240:].any()
    label = touched[:80]
    assert label.any() and extent(label)[1] == 60 and extent(label)[2] == 79


def test_the_given_image_is_left_as_it_is():
    image = gray()
    image.flags.writeable = False
    assert changed(draw([[0.1, 0.1, 0.5, 0.5]], [0], image=image)).any()
    assert not changed(image).any()


def test_lines_and_letters_grow_with_the_image():
    small, large = draw([[0.2, 0.4, 0.8, 0.9]], [1]), draw([[0.2, 0.4, 0.8, 0.9]], [1], image=gray(1400, 2100))
    # The columns of the left line, half way down the box; the rows of the label above it.
    widths = [changed(picture)[len(picture) * 6 // 10, : picture.shape[1] // 2].sum() for picture in (small, large)]
    assert widths == [2, 10]
    heights = [0.4 * len(picture) - extent(changed(picture))[0] for picture in (small, large)]
    assert heights[1] > 3 * heights[0]


def test_score_is_written_behind_the_name():
    box = [[0.2, 0.4, 0.8, 0.9]]
    without, half = draw(box, [1])[:80], draw(box, [1], [0.5])[:80]
    assert extent(changed(half))[3] > extent(changed(without))[3]
    assert not np.array_equal(half, draw(box, [1], [0.87])[:80])
    assert np.array_equal(half, draw(box, [1], [0.501])[:80])


@pytest.mark.parametrize("box", [
    [0.4, 0.0, 0.6, 0.3], [0.4, 0.8, 0.6, 1.0], [0.0, 0.4, 0.1, 0.7], [0.95, 0.4, 1.0, 0.7],
    [0.9, 0.0, 1.0, 0.1], [0.0, 0.9, 0.1, 1.0], [0.97, 0.97, 1.0, 1.0], [0.0, 0.0, 0.01, 0.01],
    [-0.3, -0.4, 0.2, 0.2], [0.8, -0.2, 1.7, 0.4], [-0.5, 0.7, 0.1, 1.4], [0.9, 0.99, 1.5, 1.6],
    [-1.0, -1.0, 2.0, 2.0],
])  # fmt: skip
def test_label_stays_whole_at_the_edges_of_the_image(box):
    framed = draw([box], [2], [0.87])
    # What the tag looks like with room on all sides; to be found again pixel by pixel.
    middle = draw([[0.3, 0.4, 0.7, 0.9]], [2], [0.87])
    tag = extent(changed(middle)[:80])
    tag_height, tag_width = tag[2] - tag[0] + 1, tag[3] - tag[1] + 1
    windows = [
        (top, left)
        for top in range(200 - tag_height + 1)
        for left in range(300 - tag_width + 1)
        if np.array_equal(
            framed[top : top + tag_height, left : left + tag_width], middle[tag[0] : tag[2] + 1, tag[1] : tag[3] + 1]
        )
    ]
    assert len(windows) == 1


def test_box_partly_outside_is_cut_at_the_edge():
    picture = draw([[0.5, 0.5, 1.4, 1.2]], [0])
    assert np.all(picture[198:, 150:] == class_color(0)) and np.all(picture[100:, 298:] == class_color(0))
    assert not changed(picture)[102:198, 152:298].any()


def test_boxes_that_cannot_be_seen_are_left_out():
    outside = [[1.1, 0.1, 1.4, 0.3], [-0.5, 0.2, -0.1, 0.4], [0.2, 1.0, 0.4, 1.2]]
    unusable = [[np.nan, 0, 1, 1], [0.6, 0.2, 0.4, 0.3]]
    assert not changed(draw(outside + unusable, [0] * 5, [0.5] * 5)).any()
    assert not changed(draw(np.zeros([0, 4]), [])).any()


def test_better_detections_lie_on_top_whatever_their_order():
    boxes, classes, scores = np.array([[0.2, 0.4, 0.8, 0.9]] * 2), np.array([0, 1]), np.array([0.4, 0.9])
    picture = draw(boxes, classes, scores)
    assert tuple(picture[179, 150]) == class_color(1)
    assert np.array_equal(picture, draw(boxes[::-1], classes[::-1], scores[::-1]))


def test_no_border_crosses_a_label():
    alone = draw([[0.2, 0.5, 0.8, 0.9]], [1], [0.5])
    crossed = draw([[0.2, 0.5, 0.8, 0.9], [0.3, 0.1, 0.9, 0.8]], [1, 0], [0.5, 0.9])
    top, left, bottom, right = extent(changed(alone)[:100])
    assert np.array_equal(crossed[top : bottom + 1, left : right + 1], alone[top : bottom + 1, left : right + 1])


def test_without_labels_only_borders_are_drawn():
    picture = draw_detections(gray(), [[0.2, 0.4, 0.8, 0.9]], [1], [0.5], class_names=NAMES, labels=False)
    assert extent(changed(picture)) == (80, 60, 179, 239)


def overlaps(places, sizes):
    """Pairs of labels that share a pixel, and the labels that leave a 300 x 200 image."""
    rectangles = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, sizes, strict=True)]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(rectangles, 2)
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]
    return pairs, [r for r in rectangles if r[0] < 0 or r[1] < 0 or r[2] > 300 or r[3] > 200]


@pytest.mark.parametrize("seed", range(20))
def test_labels_do_not_cover_each_other_where_there_is_room(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers((30, 20), (220, 120), (5, 2))
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, rng.integers(1, 79, (5, 2)), strict=True)]
    sizes = [(int(width), 15) for width in rng.integers(20, 60, 5)]
    places = place_labels(boxes, sizes, (300, 200))
    assert overlaps(places, sizes) == ([], [])
    for (left, top, right, bottom), (x, y), (width, height) in zip(boxes, places, sizes, strict=True):
        # Each label touches its own box.
        assert x <= right + 1 and x + width >= left and y <= bottom + 1 and y + height >= top


def test_labels_of_equal_boxes_lie_side_by_side():
    boxes, sizes = [(100, 50, 199, 149)] * 8, [(60, 15)] * 8
    places = place_labels(boxes, sizes, (300, 200))
    assert places[0] == (100, 35), "the first is above the left end"
    assert overlaps(places, sizes) == ([], [])


def test_without_room_the_least_covering_place_is_taken():
    boxes, sizes = [(0, 0, 39, 19)] * 3, [(40, 15)] * 3
    assert place_labels(boxes, sizes, (40, 20)) == [(0, 0), (0, 5), (0, 0)]
    assert place_labels([(0, 0, 3, 3)], [(40, 15)], (4, 4)) == [(0, 0)], "a label larger than the image"


def test_letters_contrast_with_every_class_color():
    def luminance(color):
        channels = np.array(color) / 255
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    for index in range(90):
        picture = draw_detections(gray(), [[0.2, 0.4, 0.8, 0.9]], [index], class_names=["M" * 5] * 90)
        tag = picture[:80][changed(picture)[:80]]
        # The letters are the darkest or lightest pixels of the tag.
        ink = max(tag, key=lambda pixel: abs(luminance(pixel) - luminance(class_color(index))))
        assert set(ink.tolist()) in ({0}, {255})
        light, dark = sorted((luminance(ink), luminance(class_color(index))), reverse=True)
        # The better of black and white has sqrt(1.05 / 0.05) = 4.58 at least, by the definition of WCAG 2.
        assert (light + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize("color", [(72, 132, 9), (8, 121, 200), (10, 124, 183)])
def test_letters_are_white_just_below_the_middle_between_black_and_white(color):
    """One channel of these is below 0.04045, where sRGB is linear."""
    assert _contrasting(color) == (255, 255, 255)
    assert _contrasting((color[0], color[1] + 1, color[2])) == (0, 0, 0)


def test_classes_keep_their_colors_from_version_to_version():
    colors = " ".join(bytes(class_color(index)).hex() for index in range(26))
    assert colors == (
        "e69f00 56b4e9 009e73 d55e00 cc79a7 f0e442 0072b2 ffc3ff 6900ff d22dff 963c69 00e1a5 786900 a5ffd2 d200a5 "
        "ff4b69 ff87e1 ffc387 8787d2 00690f 43bf57 f23d54 8cbcff 9bbf43 f23df2 8cffdd"
    )


def test_colors_of_classes_differ():
    colors = np.array([class_color(index) for index in range(90)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e3 * np.eye(90)
    assert distances[:20, :20].min() > 45
    assert distances.min() > 5


def test_unusable_input_is_named():
    box = [[0.1, 0.1, 0.5, 0.5]]
    with pytest.raises(ValueError, match="Class 3 has no name: class_names has 3"):
        draw(box, [3])
    with pytest.raises(ValueError, match=r"Class -1 has no name.*num_detections"):
        draw(box, [-1])
    with pytest.raises(ValueError, match="2 classes for 1 boxes"):
        draw(box, [0, 1])
    with pytest.raises(ValueError, match="2 scores for 1 boxes"):
        draw(box, [0], [0.5, 0.5])
    with pytest.raises(ValueError, match="float32"):
        draw(box, [0], image=gray().astype(np.float32))
    with pytest.raises(ValueError, match=r"\[200, 300, 4\]"):
        draw(box, [0], image=np.zeros([200, 300, 4], np.uint8))


def solid(height, width, color):
    return np.full([height, width, 3], color, np.uint8)


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def test_gallery_places_images_of_all_sizes_in_rows(tmp_path):
    save_gallery([solid(36, 72, RED), solid(720, 360, GREEN), solid(90, 90, BLUE)], tmp_path / "g.png", columns=2)
    gallery = np.asarray(Image.open(tmp_path / "g.png"))
    # Heights become 360: widths 720, 180 | 360, with gaps of 12.
    assert gallery.shape == (2 * 372 + 12, 12 + 732 + 192, 3)
    assert np.all(gallery[12:372, 12:732] == RED)
    assert np.all(gallery[12:372, 744:924] == GREEN)
    assert np.all(gallery[384:744, 12:372] == BLUE)
    colored = 360 * (720 + 180 + 360)
    assert np.sum(np.any(gallery != 255, axis=-1)) == colored


def test_gallery_titles_stand_above_their_own_image_and_are_shortened(tmp_path):
    save_gallery([solid(90, 90, RED), solid(90, 90, RED)], tmp_path / "g.png", titles=["a", "very long title " * 9])
    gallery = np.asarray(Image.open(tmp_path / "g.png"))
    ink = np.any(gallery != 255, axis=-1)[:40]
    assert gallery.shape[:2] == (12 + 28 + 360 + 12, 12 + 2 * 372)
    assert ink[:, 12:372].any() and not ink[:, 40:384].any(), "the short title"
    assert ink[:, 700:744].any() and not ink[:, 744:].any(), "the long title ends with its image"


def test_gallery_refuses_what_it_cannot_show(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        save_gallery([], tmp_path / "g.png")
    with pytest.raises(ValueError, match="1 titles for 2 images"):
        save_gallery([gray(), gray()], tmp_path / "g.png", titles=["a"])
    with pytest.raises(ValueError, match="columns = 0"):
        save_gallery([gray()], tmp_path / "g.png", columns=0)


@pytest.fixture
def panels(monkeypatch):
    """Every axes object that something was plotted on, in order, with the lines it was given."""
    plotted = []
    plot = Axes.plot

    def remember(self, *args, **kwargs):
        if self not in plotted:
            plotted.append(self)
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", remember)
    return plotted


def test_curves_show_the_numbers_of_the_log(tmp_path, panels):
    (tmp_path / "log.csv").write_text(
        "epoch,arm_box_loss,loss,val_ap,val_loss\n0,1.5,4.0,NA,NA\n1,1.0,3.0,0.25,3.5\n2,0.5,nan,NA,NA\n3,0.4,2.0,0.5,2.5\n"
    )
    save_loss_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    losses, precision = panels
    assert [line.get_xydata().tolist() for line in losses.lines] == [
        [[1, 4], [2, 3], [4, 2]], [[2, 3.5], [4, 2.5]], [[1, 1.5], [2, 1], [3, 0.5], [4, 0.4]],
    ]  # fmt: skip
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["total", "ARM boxes", "validation"]
    assert losses.get_yscale() == "log" and losses.get_ylabel().startswith("loss")
    assert precision.lines[0].get_xydata().tolist() == [[2, 0.25], [4, 0.5]]
    assert precision.get_title(loc="left") == "best 50.0 % after epoch 4"
    assert precision.get_xlabel() == "epoch" and precision.get_ylabel()
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 900
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    # Black for the total, light blue for the ARM's boxes, green for the AP.
    assert {(0x22, 0x22, 0x22), (0x56, 0xB4, 0xE9), (0x00, 0x9E, 0x73)} <= colors


def test_curves_of_one_epoch_without_evaluation_have_one_panel(tmp_path, panels):
    (tmp_path / "log.csv").write_text("epoch,loss\n0,4.0\n")
    save_loss_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    [losses] = panels
    assert losses.lines[0].get_marker() == "o" and losses.get_xlabel() == "epoch"


@pytest.mark.parametrize("text", ["", "epoch,loss\n", "step,loss\n0,1\n"])
def test_curves_refuse_what_is_no_training_log(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"log\.csv is no training log"):
        save_loss_curves(tmp_path / "log.csv", tmp_path / "curves.png")
