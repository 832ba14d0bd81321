"""Published methods, each a function that makes a plan."""

from festina.methods.block_skipping import block_skipping
from festina.methods.cachequant import cachequant
from festina.methods.confident_taylor import confident_taylor
from festina.methods.deepcache import deepcache
from festina.methods.dicache import dicache
from festina.methods.faster_diffusion import faster_diffusion
from festina.methods.first_block_cache import dbcache, first_block_cache
from festina.methods.fora import fora
from festina.methods.guidance import guidance_interval, guidance_reuse, guidance_table, joint_conditions
from festina.methods.ltc_accel import ltc_accel, released_interval, replayed_steps
from festina.methods.magcache import magcache, resample_ratios
from festina.methods.pab import pab
from festina.methods.smoothcache import smoothcache
from festina.methods.solver import solver
from festina.methods.step_mask import step_mask
from festina.methods.t_stitch import t_stitch
from festina.methods.taylorseer import taylorseer
from festina.methods.teacache import fit_curve, teacache
from festina.methods.teleportation import teleportation
from festina.methods.tgate import tgate
from festina.methods.toca import duca, toca

__all__ = [
    "block_skipping",
    "cachequant",
    "confident_taylor",
    "dbcache",
    "deepcache",
    "dicache",
    "duca",
    "faster_diffusion",
    "first_block_cache",
    "fit_curve",
    "fora",
    "guidance_interval",
    "guidance_reuse",
    "guidance_table",
    "joint_conditions",
    "ltc_accel",
    "magcache",
    "pab",
    "released_interval",
    "replayed_steps",
    "resample_ratios",
    "smoothcache",
    "solver",
    "step_mask",
    "t_stitch",
    "taylorseer",
    "teacache",
    "teleportation",
    "tgate",
    "toca",
]
