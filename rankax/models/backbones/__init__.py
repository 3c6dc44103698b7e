"""All backbones; importing this package registers them."""

from rankax.models.backbones import dcnv2, deepfm, dlrm, dnn, fm, lr, mc_mlcc

__all__ = ["dcnv2", "deepfm", "dlrm", "dnn", "fm", "lr", "mc_mlcc"]
