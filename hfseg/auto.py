"""Importing this module makes transformers' Auto classes and `pipeline` know hfseg's own networks.

Example:
    >>> import hfseg.auto
    >>> from transformers import AutoConfig, AutoModelForSemanticSegmentation
    >>> config = AutoConfig.for_model("hfseg_smp", architecture="unet", backbone="resnet18")
    >>> type(AutoModelForSemanticSegmentation.from_config(config)).__name__
    'SmpForSemanticSegmentation'
"""

from hfseg.models.networks import register

register()
