"""Label values and what they mean: the only code of hfseg that changes the values of a label map.

A *stored* value is what a file holds (an index, a grey level, a colour). A *class id* is what models learn:
0 to n - 1, and `ignore_index` where nobody said what the pixel is.
"""

from hfseg.labels.lookup import RGB
from hfseg.labels.schema import LabelSchema
from hfseg.remap import Colour, make_palette

__all__ = ["RGB", "Colour", "LabelSchema", "make_palette"]
