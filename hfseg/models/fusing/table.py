"""Which classes have one that stands in, and which of their sources it was written against.

A digest of sources comes from `print_digests()`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hfseg.models.fusing.sources import digest, find


@dataclass(frozen=True)
class Rewrite:
    """A line of the table: the class that stands in, and the sources that it was written against.

    Attributes:
        fused: "module.path:ClassName" of the fused class.
        sources: What `digest` gives for the versions of transformers that were read.
    """

    fused: str
    sources: frozenset[str] | set[str]


_TRANSFORMERS = "transformers.models."
_HERE = "hfseg.models.fusing."

REWRITES: dict[str, Rewrite] = {
    f"{_TRANSFORMERS}segformer.modeling_segformer:SegformerDecodeHead": Rewrite(
        f"{_HERE}segformer:FusedSegformerDecodeHead", {"392a7c1320dc"}
    ),
    f"{_TRANSFORMERS}upernet.modeling_upernet:UperNetHead": Rewrite(
        f"{_HERE}upernet:FusedUperNetHead", {"70ba6abfabe2"}
    ),
    f"{_TRANSFORMERS}beit.modeling_beit:BeitUperHead": Rewrite(
        f"{_HERE}beit:FusedBeitUperHead", {"6c886f4b885a"}
    ),
    f"{_TRANSFORMERS}data2vec.modeling_data2vec_vision:Data2VecVisionUperHead": Rewrite(
        f"{_HERE}beit:FusedData2VecVisionUperHead", {"e814fb9a9a04"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:"
    "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": Rewrite(
        f"{_HERE}mask2former:FusedDeformableAttention", {"84e8c27b1d73"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerMaskedAttentionDecoderLayer": Rewrite(
        f"{_HERE}mask2former:FusedDecoderLayer", {"9713727b1c4d"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerMaskPredictor": Rewrite(
        f"{_HERE}mask2former:FusedMaskPredictor", {"793438478fdc"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerForUniversalSegmentation": Rewrite(
        f"{_HERE}mask2former:FusedMask2Former", {"8d0311ba4d6d", "4ee095fd387d"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerHungarianMatcher": Rewrite(
        f"{_HERE}mask2former:FusedMatcher", {"858e98800c29"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerLoss": Rewrite(
        f"{_HERE}mask2former:FusedLoss", {"d5b8e8baa72a"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerPixelDecoderEncoderMultiscaleDeformableAttention": Rewrite(
        f"{_HERE}oneformer:FusedDeformableAttention", {"29d1b0432668"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerTransformerDecoder": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerDecoder", {"b0735da09044"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerTransformerDecoderLayer": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerDecoderLayer", {"c82d78dc198a"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerTransformerDecoderQueryTransformerDecoderLayer": Rewrite(
        f"{_HERE}oneformer:FusedQueryLayer", {"1929429d849c"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerHungarianMatcher": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerMatcher", {"783d8af31101"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerLoss": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerLoss", {"f86939a4eebb"}
    ),
    f"{_TRANSFORMERS}eomt.modeling_eomt:EomtForUniversalSegmentation": Rewrite(
        f"{_HERE}eomt:FusedEomt", {"b53fa3b4aa32"}
    ),
    f"{_TRANSFORMERS}eomt.modeling_eomt:EomtHungarianMatcher": Rewrite(
        f"{_HERE}eomt:FusedEomtMatcher", {"858e98800c29"}
    ),
    f"{_TRANSFORMERS}eomt.modeling_eomt:EomtLoss": Rewrite(
        f"{_HERE}eomt:FusedEomtLoss", {"d5b8e8baa72a"}
    ),
    f"{_TRANSFORMERS}eomt_dinov3.modeling_eomt_dinov3:EomtDinov3ForUniversalSegmentation": Rewrite(
        f"{_HERE}eomt:FusedEomtDinov3", {"637af262fc53"}
    ),
    f"{_TRANSFORMERS}eomt_dinov3.modeling_eomt_dinov3:EomtDinov3HungarianMatcher": Rewrite(
        f"{_HERE}eomt:FusedEomtDinov3Matcher", {"858e98800c29"}
    ),
    f"{_TRANSFORMERS}eomt_dinov3.modeling_eomt_dinov3:EomtDinov3Loss": Rewrite(
        f"{_HERE}eomt:FusedEomtDinov3Loss", {"d5b8e8baa72a"}
    ),
    "segmentation_models_pytorch.decoders.segformer.decoder:SegformerDecoder": Rewrite(
        f"{_HERE}smp:FusedSegformerDecoder", {"1d67f78c7004"}
    ),
    "segmentation_models_pytorch.decoders.upernet.decoder:UPerNetDecoder": Rewrite(
        f"{_HERE}smp:FusedUPerNetDecoder", {"aa3165ac544b"}
    ),
    "hfseg.models.networks.hrnet:HRNetHead": Rewrite(
        f"{_HERE}hrnet:FusedHRNetHead", {"f0658dfff7ab"}
    ),
    f"{_TRANSFORMERS}swin.modeling_swin:SwinMLP": Rewrite(
        f"{_HERE}swin:FusedSwinMLP", {"13885f42f2bb"}
    ),
}


def print_digests() -> None:
    """Prints the digest of every line of `REWRITES` for the installed transformers, and whether it is known.

    Run it as `python -c "from hfseg.models.fusing import print_digests; print_digests()"`, and add a digest to the
    table once the changed source was read and the tests pass.
    """
    for key, rewrite in REWRITES.items():
        found = digest(find(key), find(rewrite.fused))
        print(found, "known  " if found in rewrite.sources else "unknown", key)
