"""The same function with less work: what `fuse` does for each family.

Bilinear upsampling acts on positions, a 1x1 convolution on channels, so they commute; a 3x3 convolution is nine 1x1
ones, shifted and added. Whatever linear follows an upsampling can go before it, where there are fewer positions.

Ratios of the plain to the fused time of a forward on the CPU (2 threads for B0, else 1) of a busy machine, one image,
150 labels, float32, random weights; two figures are two runs.

================  ==========================================================  ==============  =======
family            what is done, or why nothing is                             fused modules   whole
================  ==========================================================  ==============  =======
SegFormer-B0      projections composed with the fuse convolution, batch       4.2 to 5.3      2.1
                  normalisation folded in without gradients, at each stage's
                  own size (512 x 512)
SegFormer-B2      the same (512 x 512)                                        4.9             2.7
UPerNet           the last 3x3 convolution at each level's own size;          1.5 to 1.7      1.3 to 1.5
                  ConvNeXt-T (512 x 512)
BEiT-B            the same (384 x 384)                                        1.7             1.4
Data2Vec-Vision   the same head as BEiT's
DPT               projecting before the upsampling in its neck was built and  left alone
                  measured: 1.1 of the neck, 1.0 of DPT-L
Mask2Former       deformable attention, decoder, masks and loss; a training                   1.4
                  step with Swin-T (512 x 512, batch 2)
                  the same; a forward with Swin-T (512 x 512), of which 1.05                  1.4
                  by small masks of inner layers
OneFormer         deformable attention, decoder, masks and loss; a forward                    1.4
                  with Swin-T (512 x 512)
                  the same; a training step with Swin-T (512 x 512)                           1.4
EoMT              matcher and loss; a training step with ViT-S (256 x 256)                    1.2
                  small masks of inner layers; a forward with ViT-S                           1.1
                  (512 x 512) and masked attention in four layers
SegFormer of smp  its decoder as SegFormer's; mit_b0, resnet34 (512 x 512)                    2.1
UPerNet of smp    the last 3x3 convolution as in UPerNet; resnet34                            1.25
                  (512 x 512)
HRNet             the head's 1x1 convolution at each branch's own size; W18,                  1.04
                  W48 (512 x 512)
LR-ASPP           a 1x1 convolution after an upsampling: 0.6 % of the         left alone
                  arithmetic
MobileNetV2       pooled branch is one position: 2.6 % of the arithmetic      left alone
MobileViT, V2     the same: 0.5 % and 1.5 %                                   left alone
Sapiens2          transposed convolutions or pixel shuffle, each followed by  nothing linear
                  a normalisation of its own output                           to move
================  ==========================================================  ==============  =======

Not moved: UPerNet's and BEiT's inner 3x3 convolutions, whose input is a sum with the upsampled map; their pooled
branches, under 2 % of the head; the upsampling of the logits to the image in UPerNet, after which there is nothing
linear.

Attention masks of inner layers come from a resized pixel embedding where nobody else asks for those masks: inference
without auxiliary logits. In training the loss needs them whole, and OneFormer's output always holds them. Published
checkpoints of EoMT have no masked attention in inference, so the gain there is for those that were fine-tuned. The
matcher's points are sampled from the masks, not from the embedding: for 12,544 points the 256 channels of an embedding
take 7 times as long as 100 masks, and 2 times as long as making and sampling them (384 channels and 200 masks: 6 and 2;
`scripts/benchmark.py masks_others`).

All of it knows the sources of transformers 5.18 to 5.24, which are all releases so far that go with huggingface-hub 2.

The gradient of Mask2Former's fused parts cannot be differentiated again: `unfuse` for that.
"""

from hfseg.models.fusing.framework import FuseReport, fuse, is_fused, stand_in, unfuse
from hfseg.models.fusing.guards import is_convolution, why_not_plain
from hfseg.models.fusing.table import REWRITES, Rewrite, print_digests

__all__ = [
    "REWRITES", "FuseReport", "Rewrite", "fuse", "is_convolution", "is_fused", "print_digests", "stand_in", "unfuse",
    "why_not_plain",
]  # fmt: skip
