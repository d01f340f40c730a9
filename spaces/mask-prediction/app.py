"""Segment images in the browser; made by hfseg."""

import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path

if importlib.util.find_spec("hfseg") is None:  # its wheel lies here: a zip file of the package
    packages = tempfile.mkdtemp(prefix="hfseg-")
    zipfile.ZipFile(next(Path(__file__).parent.glob("hfseg-*.whl"))).extractall(packages)
    sys.path.insert(0, packages)

from hfseg.demo import launch

MODELS = [
    "hfseg/shapes-segformer",
]

if __name__ == "__main__":
    launch(MODELS)
