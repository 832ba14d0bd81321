"""Published methods, each a function that makes a plan."""

from festina.methods.block_skipping import block_skipping
from festina.methods.deepcache import deepcache
from festina.methods.faster_diffusion import faster_diffusion
from festina.methods.fora import fora
from festina.methods.pab import pab
from festina.methods.step_mask import step_mask
from festina.methods.taylorseer import taylorseer
from festina.methods.tgate import tgate

__all__ = [
    "block_skipping",
    "deepcache",
    "faster_diffusion",
    "fora",
    "pab",
    "step_mask",
    "taylorseer",
    "tgate",
]
