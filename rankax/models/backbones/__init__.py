"""All backbones; importing this package registers them."""

from rankax.models.backbones import (
    autoint,
    dcnv2,
    deepfm,
    dlrm,
    dnn,
    finalmlp,
    fm,
    infnet,
    lr,
    mc_mlcc,
    rankmixer,
    tokenmixer_large,
    wukong,
    xdeepfm,
)

__all__ = [
    "autoint",
    "dcnv2",
    "deepfm",
    "dlrm",
    "dnn",
    "finalmlp",
    "fm",
    "infnet",
    "lr",
    "mc_mlcc",
    "rankmixer",
    "tokenmixer_large",
    "wukong",
    "xdeepfm",
]
