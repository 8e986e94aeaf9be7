"""Old place of `dra_bench.contenders`, until every importer has moved."""

from dra_bench.contenders.backend import CHANNELS_LAST, PYTORCH, Backend, Floats
from dra_bench.contenders.bundles import BundleEncoder, bundle_encoders
from dra_bench.contenders.pytorch import PyTorchTowers, channels_last_towers, pytorch_towers

__all__ = [
    "CHANNELS_LAST",
    "PYTORCH",
    "Backend",
    "BundleEncoder",
    "Floats",
    "PyTorchTowers",
    "bundle_encoders",
    "channels_last_towers",
    "pytorch_towers",
]
