"""Networks: the table of families, loading, and the surgery on heads."""

from hfseg.models.families import FAMILIES, Family, family_of
from hfseg.models.load_report import LoadReport
from hfseg.models.loading import load_for_inference, load_model, resolve_name, saved_schema

__all__ = [
    "FAMILIES", "Family", "LoadReport", "family_of", "load_for_inference", "load_model", "resolve_name", "saved_schema",
]  # fmt: skip
