"""Annotation files as people have them: what is broken is named with file and line, what is odd is read as its
tools mean it, and what is left out is counted."""

from __future__ import annotations

import base64
import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as codes
from pycocotools.coco import COCO

from hfseg.data import load_data
from hfseg.data.annotations import read_annotations
from hfseg.data.segments import read_segments
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema

HEIGHT, WIDTH = 40, 60
CLASSES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
RING = [5, 5, 25, 5, 25, 20, 5, 20]


def picture(path, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def annotation(segmentation=None, **more):
    return {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 10.0,
            "segmentation": [RING] if segmentation is None else segmentation, **more}


def write(root, annotations, images=None, categories=CLASSES, bom=False, name="annotations/instances_train.json"):
    images = images or [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    for image in images:
        picture(root / "images" / image["file_name"])
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8-sig" if bom else "utf-8")
    return file


def masks(listed, number=0):
    row = listed.splits["train"][number]
    schema = LabelSchema.from_names([one.name for one in listed.categories], values=[o.id for o in listed.categories])
    return read_segments(row, schema, (HEIGHT, WIDTH), "sample")


def theirs(file):
    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO(str(file))
    return [opened.annToMask(one) for one in opened.dataset["annotations"]]


BLOCK = {"size": [HEIGHT, WIDTH], "counts": [100, 30, HEIGHT * WIDTH - 130]}
RIGHT = {
    "a hole, as a ring of its own": [RING, [10, 10, 15, 10, 15, 15, 10, 15]],
    "outside of the image": [[-20, -9, 90, 5, 70, 70, 3, 55]],
    "far outside": [[-900, -900, 9000, 5, 70, 7000, 3, 55]],
    "outside altogether": [[100, 100, 120, 100, 120, 120]],
    "run lengths": BLOCK,
    "fractions": [[5.25, 5.75, 25.5, 5.1, 24.9, 20.2]],
    "a line of no area": [[5, 5, 15, 5, 5, 5]],
    "crossing itself": [[5, 5, 25, 20, 25, 5, 5, 20]],
}


@pytest.mark.parametrize("kind", RIGHT)
def test_masks_are_those_of_pycocotools(kind, tmp_path):
    file = write(tmp_path, [annotation(RIGHT[kind]), annotation(RIGHT[kind], id=2, iscrowd=1)])
    found = masks(read_annotations(tmp_path, "instance"))
    assert (found.masks() == np.array(theirs(file), bool)).all() and found.crowd.tolist() == [False, True]


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(-80, 130, width=32), min_size=6, max_size=14), min_size=1, max_size=3))
def test_polygons_are_those_of_pycocotools(rings):
    from hfseg.data.segments import to_code

    rings = [ring[: len(ring) // 2 * 2] for ring in rings]
    whole = codes.decode(codes.merge(codes.frPyObjects(rings, HEIGHT, WIDTH)))
    assert (codes.decode(to_code(rings, (HEIGHT, WIDTH))) == whole).all()


def test_odd_ids_names_and_folders_are_understood(tmp_path):
    huge = 2**40 + 1
    images = [{"id": 1.0, "file_name": "train\\deep\\a.png", "width": WIDTH, "height": HEIGHT},
              {"id": huge, "file_name": "images/train/b.png", "width": WIDTH, "height": HEIGHT}]
    for name in ("images/train/deep/a.png", "images/train/b.png", "images/val/b.png"):
        picture(tmp_path / name)
    content = {"images": images, "categories": [{"id": 3.0, "name": "cat"}, {"id": huge, "name": "dog"}],
               "annotations": [annotation(category_id=3.0), annotation(image_id=huge, category_id=huge, iscrowd="0")]}
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8-sig")
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    assert data.schema.names == ("cat", "dog") and data["train"]["image_id"] == ["train/deep/a", "images/train/b"]
    assert data["train"][1]["image"]["path"].endswith("images/train/b.png")
    assert [data.read("train", i).segments.labels.tolist() for i in range(2)] == [[0], [1]]
    assert not data.read("train", 1).segments.crowd.any()


def test_an_image_of_another_split_is_no_match(tmp_path):
    picture(tmp_path / "images" / "val" / "a.png")
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "train/a.png"}], "categories": CLASSES,
                                "annotations": [annotation()]}))
    with pytest.raises(UserError, match=r"train/a\.png"):
        read_annotations(tmp_path, "instance")
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "/home/someone/set/images/val/a.png"}],
                                "categories": CLASSES, "annotations": [annotation()]}))
    assert read_annotations(tmp_path, "instance").splits["train"][0]["image"].endswith("images/val/a.png")


WRONG = {
    "no category": ({"category_id": None}, "id 1.*category_id is None"),
    "an unknown category": ({"category_id": 99}, "id 1.*category_id is 99"),
    "half a category": ({"category_id": 3.5}, "id 1.*3.5"),
    "a polygon of odd length": ({"segmentation": [[*RING, 4]]}, "id 1.*odd length"),
    "a segmentation without size": ({"segmentation": {"counts": [3]}}, "id 1.*a segmentation of counts"),
    "a segmentation of text": ({"segmentation": "there"}, "id 1"),
    "a huge category": ({"category_id": 2**70}, "id 1"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_broken_annotation_is_named(kind, tmp_path):
    more, told = WRONG[kind]
    file = write(tmp_path, [annotation(**more)])
    with pytest.raises(UserError, match=told) as error:
        read_annotations(tmp_path, "instance")
    assert str(file) in error.value.found


UNREADABLE = {
    "another size": {"size": [9, 9], "counts": [81]},
    "too many pixels": {"size": [HEIGHT, WIDTH], "counts": [100, HEIGHT * WIDTH]},
    "negative runs": {"size": [HEIGHT, WIDTH], "counts": [-100, HEIGHT * WIDTH + 100]},
    "broken text": {"size": [HEIGHT, WIDTH], "counts": "not a code"},
    "no number": [[float("nan"), 5, 25, 5, 25, 20]],
    "words": [["a", "b", "c", "d", "e", "f"]],
    "light years away": [[0, 0, 1e12, 0, 1e12, 1e12]],
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_broken_mask_is_a_bad_sample(kind, tmp_path):
    write(tmp_path, [annotation(UNREADABLE[kind])])
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    with pytest.raises(BadSample, match=r"a\.png"):
        data.read("train", 0)


def test_what_shows_nothing_is_counted(tmp_path):
    write(tmp_path, [
        annotation(id=1), annotation(id=1), annotation([[3, 4, 9, 9]], id=2), annotation([], id=3),
        annotation(image_id=8, id=4), annotation(id=5, area=0),
    ])  # fmt: skip
    listed = read_annotations(tmp_path, "instance")
    assert len(listed.splits["train"][0]["instances"]) == 2
    told = "\n".join(listed.notes)
    for words in ("1 annotations repeat another", "1 annotations have polygons of less than three points",
                  "1 annotations have a box and no mask", "1 annotations belong to", "1 annotations state an area"):
        assert words in told


def test_two_images_of_one_id_are_refused(tmp_path):
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    write(tmp_path, [annotation()], [image, {**image, "file_name": "b.png"}])
    with pytest.raises(UserError, match="two images have the id 1"):
        read_annotations(tmp_path, "instance")


def test_annotations_for_another_size_are_refused(tmp_path):
    write(tmp_path, [annotation()], [{"id": 1, "file_name": "a.png", "width": 120, "height": 80}])
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    with pytest.raises(BadSample, match="annotations are for 120 x 80"):
        data.read("train", 0)


def test_no_object_at_all_is_data(tmp_path):
    write(tmp_path, [])
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    assert data.schema.names == ("cat", "dog") and len(data.read("train", 0).segments) == 0


def test_a_file_that_is_no_json_is_named(tmp_path):
    file = write(tmp_path, [annotation()])
    file.write_text(file.read_text()[:-40])
    with pytest.raises(UserError, match=r"instances_train\.json cannot be read"):
        load_data(tmp_path, task="instance")
    write(tmp_path, [annotation()], name="annotations/instances_val.json")
    assert any("instances_train.json cannot be read" in note for note in load_data(tmp_path, task="instance").notes)


def test_the_official_folder_has_keypoints_and_captions_beside(tmp_path):
    file = write(tmp_path, [annotation()])
    content = json.loads(file.read_text())
    (file.parent / "person_keypoints_train.json").write_text(json.dumps(
        {**content, "annotations": [annotation(keypoints=[1, 2, 2])]}))
    (file.parent / "captions_train.json").write_text(json.dumps({"images": content["images"], "annotations": [
        {"id": 1, "image_id": 1, "caption": "a cat"}]}))
    assert len(read_annotations(tmp_path, "instance").splits["train"][0]["instances"]) == 1


# -- areas --------------------------------------------------------------------------------------------------------


def test_stated_areas_decide_the_sizes_as_in_pycocotools(tmp_path):
    """A file whose areas differ from the masks scores as there."""
    from pycocotools.cocoeval import COCOeval

    from hfseg.metrics.average_precision import Detections

    random = np.random.default_rng(5)
    truth, found = [], []
    for number in range(30):
        x, y, w, h = (int(value) for value in (*random.integers(0, 20, 2), *random.integers(3, 20, 2)))
        area = [None, 500.0, 5000.0, 50000.0][int(random.integers(4))]
        ring = [x, y, x + w, y, x + w, y + h, x, y + h]
        code = codes.merge(codes.frPyObjects([ring], HEIGHT, WIDTH))
        mine = float(codes.area(code)) if area is None else area
        truth.append({**annotation([ring]), "id": number + 1, "image_id": number // 3 + 1, "area": mine})
        moved = codes.frPyObjects([[v + float(random.integers(-2, 3)) for v in ring]], HEIGHT, WIDTH)
        found.append({"image_id": number // 3 + 1, "category_id": 3, "score": float(random.random()),
                      "segmentation": codes.merge(moved)})
    images = [{"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(10)]
    file = write(tmp_path, truth, images)
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    ours = Detections(2)
    for i in range(10):
        segments, mine = data.read("train", i).segments, [one for one in found if one["image_id"] == i + 1]
        ours.add(i, [one["segmentation"] for one in mine], [0] * len(mine), [one["score"] for one in mine],
                 segments.codes(), segments.labels, segments.crowd, segments.areas)
    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO(str(file))
        scored = COCOeval(opened, opened.loadRes(found), "segm")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    scores = ours.scores(["cat", "dog"])
    keys = ["mask_ap", "mask_ap50", "mask_ap75", *(f"mask_ap_{size}" for size in ("small", "medium", "large")),
            "mask_ar_1", "mask_ar_10", "mask_ar_100", *(f"mask_ar_{size}" for size in ("small", "medium", "large"))]
    np.testing.assert_allclose(np.nan_to_num([scores[key] for key in keys], nan=-1), scored.stats, atol=1e-12)
    assert scored.stats[5] > -1 and max(one.sum() for one in theirs(file)) < 32**2  # large by their word alone


@pytest.mark.parametrize("most", [1, 5, 10, 12, 100])
def test_recall_is_named_by_how_many_detections_count(most, tmp_path):
    from pycocotools.cocoeval import COCOeval

    from hfseg.metrics.average_precision import Detections

    random = np.random.default_rng(most)
    truth, found, ours = [], [], Detections(1, max_detections=most)
    for number in range(4):
        true, mine = [], []
        for _ in range(14):
            x, y = random.integers(0, 30, 2).tolist()
            ring = [x, y, x + 9, y, x + 9, y + 8, x, y + 8]
            true.append(codes.merge(codes.frPyObjects([ring], HEIGHT, WIDTH)))
            mine.append((codes.merge(codes.frPyObjects([[v + float(random.integers(2)) for v in ring]], HEIGHT, WIDTH)),
                         float(random.random())))
        ours.add(number, [c for c, _ in mine], [0] * 14, [s for _, s in mine], true, [0] * 14)
        truth += [{"id": 14 * number + i + 1, "image_id": number + 1, "category_id": 1, "iscrowd": 0, "segmentation": c,
                   "area": float(codes.area(c)), "bbox": codes.toBbox(c).tolist()} for i, c in enumerate(true)]
        found += [{"image_id": number + 1, "category_id": 1, "score": s, "segmentation": c} for c, s in mine]
    limits = [count for count in (1, 10) if count < most] + [most]
    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO()
        opened.dataset = {"images": [{"id": i + 1, "height": HEIGHT, "width": WIDTH} for i in range(4)],
                          "annotations": truth, "categories": [{"id": 1}]}
        opened.createIndex()
        scored = COCOeval(opened, opened.loadRes(found), "segm")
        scored.params.maxDets = limits
        scored.evaluate()
        scored.accumulate()
    scores = ours.scores(["one"])
    assert [key for key in scores if key.startswith("mask_ar_") and key[8:].isdigit()] == [
        f"mask_ar_{count}" for count in limits]
    for place, count in enumerate(limits):
        assert scores[f"mask_ar_{count}"] == pytest.approx(scored.eval["recall"][:, 0, 0, place].mean(), abs=1e-12)
    assert scores["mask_ap"] == pytest.approx(scored.eval["precision"][:, :, 0, 0, -1].mean(), abs=1e-12)


# -- YOLO, CVAT, LabelMe, Pascal VOC ------------------------------------------------------------------------------


def yolo(root, text, **names):
    picture(root / "images" / "train" / "a.png")
    label = root / "labels" / "train" / "a.txt"
    label.parent.mkdir(parents=True)
    label.write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "data.yaml").write_text(json.dumps({"names": names or {"0": "cat", "1": "dog"}}), encoding="utf-8-sig")
    return label


def test_yolo_boxes_are_told(tmp_path):
    yolo(tmp_path, "\ufeff0 0.5 0.5 0.5 0.5\n\n1 0 0 0.5 0 0.5 0.5\n")
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    assert any("1 labels are boxes and no outlines" in note for note in data.notes)
    found = data.read("train", 0).segments
    assert found.labels.tolist() == [0, 1] and found.masks()[0].sum() == HEIGHT * WIDTH / 4


@pytest.mark.parametrize("line", ["0 0.1 0.1 0.4", "0 0.1 nan 0.4 0.4 0.4 0.1", "0 5 5 20 5 20 20", "cat 0 0 1 0 1 1",
                                  "-1 0 0 1 0 1 1", "0 0.1 0.1 0.4 0.4 0.1 0.4 0.9"])
def test_a_broken_yolo_line_is_named(line, tmp_path):
    label = yolo(tmp_path, f"0 0 0 1 0 1 1\n{line}\n")
    with pytest.raises(UserError, match="line 2") as error:
        read_annotations(tmp_path, "instance")
    assert str(label) in error.value.found


def test_yolo_labels_without_an_image_are_counted(tmp_path):
    label = yolo(tmp_path, "0 0 0 1 0 1 1")
    label.with_name("b.txt").write_text("0 0 0 1 0 1 1")
    assert any("1 label files have no image, such as b.txt" in note for note in
               read_annotations(tmp_path, "instance").notes)


def cvat(root, shapes, more="", image=f'width="{WIDTH}" height="{HEIGHT}"'):
    picture(root / "images" / "a.png")
    (root / "annotations.xml").write_text(
        f'<?xml version="1.0"?><annotations>{more}<image id="0" name="a.png" {image}>{shapes}</image></annotations>')


def test_cvat_shapes(tmp_path):
    cvat(tmp_path, '<ellipse label="cat" cx="30" cy="20" rx="16" ry="8" rotation="30"/>'
         '<box label="dog" xtl="20" ytl="10" xbr="40" ybr="30" rotation="45"/>'
         '<polyline label="cat" points="1,1;5,5"/><points label="cat" points="1,1"/><points label="cat" points="2,2"/>'
         '<cuboid label="cat"/><tag label="cat"/><mask label="dog" rle="0,4" left="-1" top="38" width="2" height="2"/>')
    listed = read_annotations(tmp_path, "instance")
    told = "\n".join(listed.notes)
    for words in ("1 polyline shapes", "2 points shapes", "1 cuboid shapes", "1 tag shapes"):
        assert words in told
    oval, box, mask = masks(listed).masks()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    along, across = (x - 30) * cos + (y - 20) * sin, -(x - 30) * sin + (y - 20) * cos
    inside = (along / 16) ** 2 + (across / 8) ** 2 <= 1
    assert (oval & inside).sum() / (oval | inside).sum() > 0.93
    diamond = abs(x - 30) + abs(y - 20) <= 200**0.5
    assert (box & diamond).sum() / (box | diamond).sum() > 0.93
    assert mask.sum() == 2 and mask[38:, 0].all()


@pytest.mark.parametrize(("shapes", "told"), [
    ('<mask label="cat" rle="0,5" left="0" top="0" width="2" height="2"/>', "run lengths of 5 pixels"),
    ('<polygon label="cat" points="1,a;3,4;4,4"/>', "could not convert"),
    ('<polygon points="1,1;3,4;4,4"/>', "without a label"),
])  # fmt: skip
def test_a_broken_cvat_shape_is_named(shapes, told, tmp_path):
    cvat(tmp_path, shapes)
    with pytest.raises(UserError, match=rf"annotations\.xml, image 'a\.png'.*{told}"):
        read_annotations(tmp_path, "instance")


def test_a_cvat_video_says_which_export(tmp_path):
    (tmp_path / "annotations.xml").write_text("<annotations><track id='0' label='cat'/></annotations>")
    with pytest.raises(UserError, match="tracks of a video"):
        read_annotations(tmp_path, "instance")


def labelme(root, shapes):
    picture(root / "a.png")
    (root / "a.json").write_text(json.dumps({"imagePath": "..\\somewhere\\a.png", "imageHeight": HEIGHT,
                                             "imageWidth": WIDTH, "shapes": shapes}), encoding="utf-8-sig")


def test_labelme_shapes(tmp_path):
    window = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], np.uint8) * 255).save(window, "PNG")
    mask = base64.b64encode(window.getvalue()).decode()
    kinds = [("circle", [[30, 20], [40, 20]]), ("rectangle", [[25, 20], [5, 5]]), ("line", [[1, 1], [9, 9]]),
             ("linestrip", [[1, 1], [9, 9], [3, 4]]), ("point", [[1, 1]]), ("points", [[1, 1], [3, 3]]),
             ("oriented_rectangle", [[10, 0], [20, 10], [10, 20], [0, 10]]), ("polygon", [[1, 1], [2, 2]])]
    shapes = [{"label": "cat", "shape_type": kind, "points": points} for kind, points in kinds]
    shapes.append({"label": "dog", "shape_type": "mask", "points": [[7, 3], [8, 4]], "mask": mask})
    labelme(tmp_path, shapes)
    listed = read_annotations(tmp_path, "instance")
    told = "\n".join(listed.notes)
    for kind in ("line", "linestrip", "point", "points", "polygon"):
        assert f"1 shapes of the kind {kind} have no area" in told
    circle, box, turned, small = masks(listed).masks()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = (x - 30) ** 2 + (y - 20) ** 2 <= 100
    assert (circle & inside).sum() / (circle | inside).sum() > 0.93
    assert box.sum() == 300 and abs(int(turned.sum()) - 200) < 15
    assert np.argwhere(small).tolist() == [[3, 7], [4, 7], [4, 8]]


def test_labelme_parts_of_a_group_are_one_object(tmp_path):
    window = io.BytesIO()
    Image.new("L", (2, 2), 255).save(window, "PNG")
    mask = base64.b64encode(window.getvalue()).decode()
    labelme(tmp_path, [{"label": "cat", "group_id": 1, "points": [[10, 10], [20, 10], [20, 20]]},
                       {"label": "cat", "group_id": 1, "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": mask},
                       {"label": "dog", "group_id": 1, "points": [[30, 10], [40, 10], [40, 20]]}])
    found = masks(read_annotations(tmp_path, "instance"))
    assert len(found) == 2 and found.masks()[0, 1, 1] and found.masks()[0, 12, 18]


def test_a_broken_labelme_file_is_named(tmp_path):
    labelme(tmp_path, [{"points": [[1, 1], [3, 3], [3, 4]]}])
    with pytest.raises(UserError, match=r"a\.json.*'label' is missing"):
        read_annotations(tmp_path, "instance")


def voc(root, palette=True):
    picture(root / "JPEGImages" / "a.png")
    ids = Image.new("P", (WIDTH, HEIGHT), 0)
    ids.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    drawing = ImageDraw.Draw(ids)
    for number, box in enumerate(((5, 5, 20, 20), (30, 10, 50, 30)), start=1):
        drawing.rectangle(box, fill=number, outline=255)
    return ids


def test_the_outline_of_pascal_voc_is_no_object(tmp_path):
    ids = voc(tmp_path)
    (tmp_path / "SegmentationObject").mkdir()
    ids.save(tmp_path / "SegmentationObject" / "a.png")
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    assert [int(mask.sum()) for mask in data.read("train", 0).segments.masks()] == [14 * 14, 19 * 19]


def test_pascal_voc_without_its_objects_says_so(tmp_path):
    ids = voc(tmp_path)
    (tmp_path / "SegmentationClass").mkdir()
    ids.save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(UserError, match="images but no instance maps") as error:
        load_data(tmp_path, task="instance")
    assert "--task semantic" in str(error.value)


# -- stuff --------------------------------------------------------------------------------------------------------


def test_stuff_has_no_objects(shared_data):
    data = load_data(shared_data / "coco_panoptic_sample", task="instance", validation_fraction=0)
    assert data.schema.num_labels == 80 and any("53 classes are stuff" in note for note in data.notes)
    for i in range(2):
        segments = data.read("train", i).segments
        assert {data.schema.names[label] for label in segments.labels if label >= 0} <= {
            "person", "horse", "truck", "sports ball", "car", "bicycle"}
