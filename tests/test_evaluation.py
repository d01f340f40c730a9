"""The evaluator against the definition written out, on images of many sizes and with classes in any order."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import SegformerImageProcessor

import hfseg
from hfseg.data import load_data
from hfseg.data.alignment import align_classes
from hfseg.errors import BadSample, UserError
from hfseg.evaluation import Evaluator
from hfseg.evaluation.split import Split
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig
from hfseg.segmenter import Segmenter
from runs import TINY

NAMES = ["road", "car", "sky"]
SIZES = [(40, 48), (33, 70), (64, 64), (40, 48), (51, 37), (40, 48), (90, 32)]


def write_folder(root, names=NAMES, sizes=SIZES, split="val"):
    """Images whose red channel tells the class (value // 60), with blocks of each and an ignored corner."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / split / kind).mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        ids = np.kron(rng.integers(0, 3, (-(-height // 8), -(-width // 8))), np.ones((8, 8)))[:height, :width]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[..., 0] = ids * 60 + 20
        stored = ids.astype(np.uint8)
        stored[:5, :5] = 255
        Image.fromarray(image).save(root / split / "images" / f"p{number}.png")
        Image.fromarray(stored).save(root / split / "masks" / f"p{number}.png")
    (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


class ReadsRed(nn.Module):
    """Predicts the class that the red channel tells, as the model's own id `order[class]`."""

    def __init__(self, names, order=(0, 1, 2)):
        super().__init__()
        self.order, self.weight = order, nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names), num_channels=3)

    def forward(self, pixel_values):
        ids = torch.tensor(self.order)[(pixel_values[:, 0] * 255 / 60).long().clamp(0, 2)]
        return SimpleNamespace(logits=F.one_hot(ids, self.config.num_labels).movedim(-1, 1).float() * 9)


def plain_processor(**more):
    return SegformerImageProcessor(**{"do_resize": False, "do_normalize": False, **more})


def reads_red(names=NAMES, order=(0, 1, 2)) -> Segmenter:
    return Segmenter(ReadsRed(names, order), plain_processor())


def random_segmenter(**more) -> Segmenter:
    torch.manual_seed(3)
    model, _ = hfseg.load_model("segformer", LabelSchema.from_names(NAMES), config=TINY)
    with torch.no_grad():  # decisions that differ from place to place
        model.decode_head.classifier.weight.mul_(30)
    return Segmenter(model, plain_processor(**more))


def written_out(segmenter, samples, size=None):
    """Per-class IoU and accuracies by the definition, and each image's logits at the network's resolution."""
    overlap, either, hits, total, kept = np.zeros(3), np.zeros(3), 0, 0, []
    segmenter.model.eval()
    for image, reference in samples:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        if size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)
        with torch.no_grad():
            logits = segmenter.model(pixel_values=pixels).logits
        kept.append((logits, reference))
        found = F.interpolate(logits, reference.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        valid = reference != 255
        for label in range(3):
            a, b = (found == label) & valid, (reference == label) & valid
            overlap[label] += (a & b).sum()
            either[label] += (a | b).sum()
        hits, total = hits + ((found == reference) & valid).sum(), total + valid.sum()
    return overlap / either, hits / total, kept


def pairs(root):
    files = sorted((root / "val" / "images").iterdir())
    return [(np.array(Image.open(f)), np.array(Image.open(root / "val" / "masks" / f.name))) for f in files]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_those_of_the_definition_at_the_original_sizes(folder, batch_size):
    segmenter = random_segmenter()
    iou, accuracy, _ = written_out(segmenter, pairs(folder))
    results = Evaluator(load_data(folder), "validation", batch_size=batch_size).run(segmenter, verbose=False)
    assert list(results["per_category_iou"].values()) == pytest.approx(list(iou), abs=1e-4)
    assert results["mean_iou"] == pytest.approx(iou.mean(), abs=1e-4)
    assert results["overall_accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert len({round(x, 3) for x in iou}) == 3 and results["num_images"] == len(SIZES)
    assert results["protocol"]["resize"] is None and results["protocol"]["ignore_index"] == 255


def test_a_processor_that_resizes_changes_the_input_and_not_what_is_scored(folder):
    segmenter = random_segmenter(do_resize=True, size={"height": 48, "width": 64})
    iou, _, _ = written_out(segmenter, pairs(folder), size=(48, 64))
    results = Evaluator(load_data(folder), "validation").run(segmenter, verbose=False)
    assert list(results["per_category_iou"].values()) == pytest.approx(list(iou), abs=0.02)  # resampling in 8 bits
    assert results["protocol"]["resize"] == {"height": 48, "width": 64}


def test_the_loss_is_the_mean_over_images_of_the_objective_at_the_networks_resolution(folder):
    segmenter = random_segmenter()

    def objective(logits, labels):
        whole = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(whole, labels, ignore_index=255)

    _, _, kept = written_out(segmenter, pairs(folder))
    wanted = np.mean([float(objective(logits, torch.from_numpy(ids).long()[None])) for logits, ids in kept])
    results = Evaluator(load_data(folder), "validation").run(segmenter, objective=objective, verbose=False)
    assert results["loss"] == pytest.approx(wanted, rel=1e-4)
    assert Evaluator(load_data(folder), "validation").run(segmenter, verbose=False)["loss"] is None


def test_a_perfect_prediction_scores_one_whatever_the_order_of_the_models_classes(folder):
    lines = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        names = [None] * 3
        for name, place in zip(["Road", "car", "SKY"], order):
            names[place] = name
        results = hfseg.evaluate(reads_red(names, order), load_data(folder), say=lines.append)
        assert results["per_category_iou"] == dict.fromkeys(names, 1.0)
    assert any("road" in line and "->    2 Road" in line for line in lines)


def test_a_larger_vocabulary_is_aligned_and_its_other_classes_are_absent(folder):
    names = ["wall", "sky", "sea", "road", "car"]
    results = hfseg.evaluate(reads_red(names, (3, 4, 1)), load_data(folder))
    assert results["per_category_iou"] == {"wall": None, "sky": 1.0, "sea": None, "road": 1.0, "car": 1.0}
    assert results["num_classes_averaged"] == 3 and results["mean_iou"] == 1.0


def test_a_class_that_the_model_does_not_know_is_refused_unless_it_is_dropped(folder):
    segmenter = reads_red(["road", "car", "tree"])
    with pytest.raises(UserError, match=r"does not know .*: sky\n.*road, car, tree\n.*--data.labels.drop"):
        hfseg.evaluate(segmenter, load_data(folder))
    results = hfseg.evaluate(segmenter, load_data(folder, labels=LabelsConfig(drop=["sky"])))
    assert results["per_category_iou"] == {"road": 1.0, "car": 1.0, "tree": None}


def test_align_classes_says_nothing_where_nothing_is_to_be_said():
    schema = LabelSchema.from_names(["traffic sign", "Car"])
    assert align_classes(schema, ["traffic sign", "Car"]) is None
    assert align_classes(schema, ["car", "x", "Traffic_Sign"]).tolist() == [2, 0]


def test_the_table_to_the_models_ids_is_followed(folder):
    evaluator = Evaluator(load_data(folder), "validation", to_model=np.array([4, 0, 2]))
    results = evaluator.run(reads_red(list("abcde"), (4, 0, 2)), verbose=False)
    assert {k: v for k, v in results["per_category_iou"].items() if v is not None} == {"a": 1.0, "c": 1.0, "e": 1.0}


def test_a_bad_sample_stops_by_its_name_or_is_skipped_and_counted(folder):
    whole = pairs(folder)
    (folder / "val" / "masks" / "p2.png").write_bytes(b"")
    data, segmenter = load_data(folder, on_bad_sample="skip"), random_segmenter()
    with pytest.raises(BadSample, match=r"p2\.png"):
        Evaluator(data, "validation").run(segmenter, verbose=False)
    evaluator = Evaluator(data, "validation", on_bad_sample="skip")
    for _ in range(2):  # counted anew each time
        results = evaluator.run(segmenter, verbose=False)
        assert results["num_images"] == len(SIZES) - 1 and results["protocol"]["skipped_images"] == 1
    iou, _, _ = written_out(segmenter, whole[:2] + whole[3:])
    assert list(results["per_category_iou"].values()) == pytest.approx(list(iou), abs=1e-4)
    for file in (folder / "val" / "images").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="not one image of the split validation could be scored"):
        evaluator.run(segmenter, verbose=False)


def test_a_limit_scores_the_first_images_and_a_large_one_all(folder):
    segmenter = random_segmenter()
    iou, _, _ = written_out(segmenter, pairs(folder)[:3])
    results = hfseg.evaluate(segmenter, load_data(folder), limit=3)
    assert list(results["per_category_iou"].values()) == pytest.approx(list(iou), abs=1e-4)
    assert hfseg.evaluate(segmenter, load_data(folder), limit=300)["num_images"] == len(SIZES)


def test_a_stream_gives_the_scores_of_its_rows(folder, tmp_path):
    cells = {"image": [], "label": []}
    for number in range(len(SIZES)):
        for column, kind in (("image", "images"), ("label", "masks")):
            content = (folder / "val" / kind / f"p{number}.png").read_bytes()
            cells[column].append({"bytes": content, "path": None})
    features = datasets.Features(image=datasets.Image(), label=datasets.Image())
    table = tmp_path / "table"
    table.mkdir()
    datasets.Dataset.from_dict(cells, features=features).to_parquet(table / "validation.parquet")
    stream = load_data(table, streaming=True, labels=LabelSchema.from_names(NAMES))
    assert stream.streaming
    segmenter = random_segmenter()
    wanted = Evaluator(load_data(folder), "validation").run(segmenter, verbose=False)
    for limit, other in ((None, wanted), (3, hfseg.evaluate(segmenter, load_data(folder), limit=3))):
        found = Evaluator(stream, "validation", limit=limit).run(segmenter, verbose=False)
        assert found["per_category_iou"] == other["per_category_iou"] and found["num_images"] == other["num_images"]


@pytest.mark.parametrize("world", [2, 3, 11])
def test_processes_share_the_images_and_their_counts_add_up(folder, world):
    class Rank:
        device, num_processes = torch.device("cpu"), world

        def __init__(self, rank):
            self.process_index, self.sent = rank, []

        def reduce(self, tensor, how):
            self.sent.append(tensor.clone())
            return tensor + 1  # so that a process without an image goes on

    segmenter, ranks = random_segmenter(), [Rank(rank) for rank in range(world)]
    for rank in ranks:
        Evaluator(load_data(folder), "validation").run(segmenter, accelerator=rank, verbose=False)
    alone = Rank(0)
    alone.num_processes = 2  # sends what it has
    evaluator = Evaluator(load_data(folder), "validation")
    evaluator.split.share = lambda rank, world, verbose: Split.share(evaluator.split, 0, 1, verbose)
    evaluator.run(segmenter, accelerator=alone, verbose=False)
    assert torch.equal(sum(rank.sent[0] for rank in ranks), alone.sent[0])
    assert sum(rank.sent[1] for rank in ranks).tolist() == [0]
    assert sum(rank.sent[2] for rank in ranks).tolist() == [len(SIZES), 0]


def test_what_never_occurs_is_none_and_all_ignored_is_no_error(folder):
    results = hfseg.evaluate(reads_red(), load_data(folder, labels=LabelsConfig(drop=["car"])), limit=1)
    assert results["per_category_iou"] == {"road": 1.0, "car": None, "sky": 1.0}
    for file in (folder / "val" / "masks").iterdir():
        Image.fromarray(np.full(Image.open(file).size[::-1], 255, np.uint8)).save(file)
    results = hfseg.evaluate(reads_red(), load_data(folder))
    assert results["mean_iou"] is None and results["num_images"] == len(SIZES)
    json.dumps(results, allow_nan=False)


def saved_run(path, schema: LabelSchema):
    """What a run leaves: model, processor, labels."""
    torch.manual_seed(0)
    model, _ = hfseg.load_model("segformer", schema, config=TINY)
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(30)
    model.save_pretrained(path)
    plain_processor().save_pretrained(path)
    schema.save(path / "labels.json")
    return path


def test_a_run_reads_labels_as_it_did_in_training(folder, tmp_path):
    labels = LabelsConfig(merge={"ground": ["road", "car"]})
    schema = load_data(folder, labels=labels).schema
    run = saved_run(tmp_path / "run", schema)
    results = hfseg.evaluate(run, load_data(folder))
    assert list(results["per_category_iou"]) == ["ground", "sky"]
    assert results["per_category_iou"] == hfseg.evaluate(run, load_data(folder, labels=labels))["per_category_iou"]


def test_what_the_data_ignores_is_ignored_though_the_run_knows_a_class_by_that_value(folder, tmp_path):
    run = saved_run(tmp_path / "run", LabelSchema.from_names(NAMES))
    (folder / "classes.json").write_text(json.dumps({"names": ["road", "car"], "ignore_index": 2}))
    results = hfseg.evaluate(run, load_data(folder))
    assert results["per_category_iou"]["sky"] in (None, 0.0)  # nothing in the reference is sky
    assert not LabelSchema.from_names(NAMES).reads(load_data(folder).schema)


def test_panels_are_drawn_over_the_split(folder, tmp_path):
    files = Evaluator(load_data(folder), "validation").draw_samples(random_segmenter(), tmp_path / "panels", 3)
    assert [file.name for file in files] == ["00_p0.png", "01_p3.png", "02_p6.png"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 400 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_a_split_is_found_by_names_that_mean_the_same(folder):
    (folder / "val").rename(folder / "testing")
    data, segmenter = load_data(folder), reads_red()
    for split in (None, "test", "testing"):
        assert hfseg.evaluate(segmenter, data, split=split)["protocol"]["split"] == "test"
    with pytest.raises(UserError, match="unknown split 'validation'"):
        hfseg.evaluate(segmenter, data, split="val")


# -- tiles and views ------------------------------------------------------------------------------------------


def windows_written_out(segmenter, image, tile=32):
    """Logits at the network's resolution: each cell the weighted mean of the windows over it."""
    total, weight = 0, 0
    sides = [-(-side // 4) for side in image.shape[:2]]
    starts = []
    for cells, side in zip(sides, image.shape[:2]):
        count = 1 if side <= tile else -(-(cells - 2) // 6)  # cells of 4 pixels, 8 of them a window, 2 in common
        starts.append([round(i * (cells - 8) / (count - 1)) for i in range(count)] if count > 1 else [0])
    inside = torch.tensor([0.5, 1.5, 2, 2, 2, 2, 1.5, 0.5])
    ramps = [inside if side > tile else torch.ones(cells) for cells, side in zip(sides, image.shape[:2])]
    padded = np.pad(image, [(0, 4 * cells - side) for cells, side in zip(sides, image.shape[:2])] + [(0, 0)], "edge")
    lengths = [tile if side > tile else side for side in image.shape[:2]]
    for top in starts[0]:
        for left in starts[1]:
            window = padded[4 * top : 4 * top + lengths[0], 4 * left : 4 * left + lengths[1]]
            pixels = torch.from_numpy(window.copy()).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                logits = segmenter.model(pixel_values=pixels).logits[0]
            share, room = ramps[0][:, None] * ramps[1], torch.zeros(2, 3, *sides)
            room[0, :, top : top + share.shape[0], left : left + share.shape[1]] = logits * share
            room[1, :, top : top + share.shape[0], left : left + share.shape[1]] = share
            total, weight = total + room[0], weight + room[1]
    return total / weight


def test_scores_and_loss_in_tiles_are_those_of_the_blended_logits(tmp_path):
    """A size of whole cells, one that is none, and one that is no longer than a tile on one side."""
    folder = write_folder(tmp_path / "data", sizes=[(64, 96), (51, 70), (32, 90), (90, 61)])
    segmenter = random_segmenter()
    matrix, losses = np.zeros((3, 3), np.int64), []
    for image, reference in pairs(folder):
        logits = windows_written_out(segmenter, image)
        rows, columns = (4 * n if side > 32 else side for n, side in zip(logits.shape[1:], reference.shape))
        whole = F.interpolate(logits[None], (rows, columns), mode="bilinear", align_corners=False)
        whole = whole[..., : reference.shape[0], : reference.shape[1]]
        losses.append(float(F.cross_entropy(whole, torch.from_numpy(reference).long()[None], ignore_index=255)))
        valid = reference != 255
        np.add.at(matrix, (reference[valid], whole[0].argmax(0).numpy()[valid]), 1)
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))

    def objective(logits, labels):
        whole = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(whole, labels, ignore_index=255)

    for loss in (None, objective):
        results = Evaluator(load_data(folder), "validation", tile=32).run(segmenter, objective=loss, verbose=False)
        assert list(results["per_category_iou"].values()) == pytest.approx(list(iou), abs=1e-3)
        assert results["protocol"]["tile"] == {"size": 32, "overlap": 0.25, "windows_resized": False}
    assert results["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    plain = Evaluator(load_data(folder), "validation").run(segmenter, verbose=False)
    assert list(plain["per_category_iou"].values()) != pytest.approx(list(iou), abs=1e-3)
    assert plain["protocol"]["tile"] is None and plain["protocol"]["test_time_augmentation"] is None


def test_scores_of_views_are_those_of_the_mean_probabilities(folder):
    segmenter, matrix = random_segmenter(), np.zeros((3, 3), np.int64)
    for image, reference in pairs(folder):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            straight, turned = (segmenter.model.eval()(pixel_values=view).logits for view in (pixels, pixels.flip(3)))
        mean = (straight.softmax(1) + turned.flip(3).softmax(1)).log()
        found = F.interpolate(mean, reference.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        np.add.at(matrix, (reference[reference != 255], found[reference != 255]), 1)
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    results = hfseg.evaluate(segmenter, load_data(folder), tta=["horizontal_flip"])
    assert list(results["per_category_iou"].values()) == pytest.approx(list(iou), abs=1e-3)
    assert results["protocol"]["test_time_augmentation"] == ["horizontal_flip"]
    assert results["per_category_iou"] != hfseg.evaluate(segmenter, load_data(folder))["per_category_iou"]


def test_the_evaluators_settings_win_over_the_segmenters(folder):
    segmenter = random_segmenter().using(tile=32, tta="vertical_flip")
    as_it_is = hfseg.evaluate(segmenter, load_data(folder))["protocol"]
    assert as_it_is["tile"] == {"size": 32, "overlap": 0.25, "windows_resized": False}
    assert as_it_is["test_time_augmentation"] == ["vertical_flip"]
    off = hfseg.evaluate(segmenter, load_data(folder), tile=0, tta=())["protocol"]
    assert (off["tile"], off["test_time_augmentation"]) == (None, None)
    json.dumps([as_it_is, off])
    for wrong in ({"tile": 33}, {"tta": "flip"}):
        with pytest.raises(UserError, match=r"tile is 33|tta holds 'flip'"):
            Evaluator(load_data(folder), "validation", **wrong)


def test_scores_of_other_tiles_or_views_do_not_compare(folder):
    data = load_data(folder)
    settings = [{}, {"tile": 32}, {"tile": 64}, {"tta": "horizontal_flip"}, {"tta": [0.5]}, {"tile": 32, "tta": [0.5]}]
    found = [Evaluator(data, "validation", **some).measures() for some in settings]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert len(found[0]) == 4  # what runs of earlier versions wrote down
    assert Evaluator(data, "validation", tile=0, tta=()).measures() == found[0]
    assert json.loads(json.dumps(found)) == found


def test_rows_are_decoded_while_the_network_computes_and_no_further_than_needed(folder, monkeypatch):
    import hfseg.evaluation.split as module

    read, decoded, seen = module.read_row, [], []

    def count(row, *arguments):
        sample = read(row, *arguments)
        decoded.append(sample.name)
        return sample

    monkeypatch.setattr(module, "read_row", count)
    segmenter = random_segmenter()
    segmenter.model.register_forward_pre_hook(lambda *_: seen.append(len(decoded)))
    Evaluator(load_data(folder), "validation", batch_size=1).run(segmenter, verbose=False)
    assert len(decoded) == len(SIZES) and len(seen) == len(SIZES)
    assert all(count <= number + 3 for number, count in enumerate(seen))  # of a batch, the next one, and one to compare
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hfseg-read")]
