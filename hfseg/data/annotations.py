"""Files that list objects: COCO (instances and panoptic), YOLO polygons, LabelMe and CVAT, read into rows.

A row holds paths and the annotations as they are written, polygons and codes alike: nothing is rasterised before the
row is used, but for masks that a tool stores as pictures or by rows.
"""

from __future__ import annotations

from pathlib import Path

from hfseg.data.coco import read_coco
from hfseg.data.drawn import read_cvat, read_labelme
from hfseg.data.listed import BROKEN, Folder, Listed
from hfseg.data.yolo import read_yolo
from hfseg.errors import UserError

FORMATS = ("COCO JSON (instances or panoptic), YOLO (data.yaml, images and labels), LabelMe JSON beside the images, "
           "CVAT annotations.xml, or a folder of instance maps beside the images")


def read_annotations(root: Path, task: str, skip: bool = False, broken: list[str] | None = None) -> Listed | None:
    """Reads the annotation files of a folder, whatever their format.

    Args:
        root: The folder.
        task: `instance` or `panoptic`.
        skip: Leave out images that are missing instead of stopping.
        broken: Where to name files that cannot be read at all, if nothing else is found.

    Returns:
        What they hold, or None where there are none.

    Raises:
        UserError: When they cannot be understood.
    """
    folder = Folder(root)
    for read in (read_coco, read_yolo, read_cvat, read_labelme):
        try:
            listed = read(folder, task, skip)
        except BROKEN as error:
            raise UserError(f"{root}: annotations that do not follow their format ({type(error).__name__}: {error})",
                            FORMATS, "export them anew") from error
        told = [f"{file} cannot be read ({why})" for file, why in folder.broken.items()]
        if listed is not None:
            listed.splits = {split: rows for split, rows in listed.splits.items() if rows}
            listed.notes += [f"{text}: left out" for text in told]
            if not listed.splits:
                raise UserError(f"{root}: {listed.origin} lists no image that is here", FORMATS, "check the file names")
            return listed
    if broken is not None:
        broken += told
    return None
