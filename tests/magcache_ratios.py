"""Magnitude ratios that MagCache's authors measured, and what their rule computes with them.

The ratios are those of github.com/Zehong-Ma/MagCache (Apache-2.0), of Wan 2.1 text-to-video for the branch with the
caption, of HunyuanVideo at 720 pixels; those of FLUX are in diffusers. The first of each is a placeholder.
"""

import math

from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

# fmt: off
WAN_14B = (
    1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468, 0.99438,
    0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313, 0.99215, 0.99218,
    0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037,
    0.97678, 0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
)
WAN_1_3B = (
    1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535, 0.99552,
    0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927,
    0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977,
    0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
)
HUNYUAN_VIDEO = (
    1.0, 1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101, 1.00679, 1.02556,
    1.00908, 1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381, 1.01886, 1.01161, 1.02968, 1.00544,
    1.02822, 1.00689, 1.02119, 1.0105, 1.01044, 1.01572, 1.02972, 1.0094, 1.02368, 1.0226, 0.98965, 1.01588, 1.02146,
    1.0018, 1.01687, 0.99436, 1.00283, 1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943, 0.85703, 0.75456,
)
# fmt: on
FLUX = tuple(FLUX_MAG_RATIOS.tolist())
FLUX_COMPUTING_11 = tuple(math.nan if step == 11 else ratio for step, ratio in enumerate(FLUX))
"""The code for FLUX computes step 11 in any case."""

WARM_UP = tuple(range(10))

PUBLISHED = {
    "FLUX, its own settings": (FLUX_COMPUTING_11, 0.24, 5, 0.1, (0, 1, 2, 5, 9, 11, 17, 23, 26)),
    "FLUX, diffusers' settings": (FLUX, 0.06, 3, 0.2, (0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 21, 24, 26, 27)),
    "HunyuanVideo, fast": (HUNYUAN_VIDEO, 0.24, 6, 0.2, (*WARM_UP, 14, 18, 23, 29, 34, 41, 46, 48, 49)),
    "HunyuanVideo": (HUNYUAN_VIDEO, 0.12, 4, 0.2, (*WARM_UP, 12, 15, 18, 22, 25, 29, 33, 38, 43, 46, 48, 49)),
    "Wan 14B, faithful": (WAN_14B, 0.12, 2, 0.2, (*WARM_UP, *range(12, 45, 3), 44, 46, 48, 49)),
    "Wan 1.3B, faithful": (WAN_1_3B, 0.12, 2, 0.2, (*WARM_UP, *range(12, 45, 3), 44, 46, 48, 49)),
    "Wan 14B": (WAN_14B, 0.12, 4, 0.2, (*WARM_UP, 14, 19, 24, 29, 34, 38, 41, 44, 46, 48, 49)),
    "Wan 1.3B": (WAN_1_3B, 0.12, 4, 0.2, (*WARM_UP, 14, 19, 24, 29, 34, 38, 41, 44, 46, 48, 49)),
    "Wan 14B, fast": (WAN_14B, 0.24, 6, 0.2, (*WARM_UP, 16, 23, 30, 36, 41, 44, 47, 49)),
    "Wan 1.3B, fast": (WAN_1_3B, 0.24, 6, 0.2, (*WARM_UP, 16, 23, 30, 36, 41, 45, 47, 49)),
}
"""Ratios, threshold, longest reuse, share of steps that compute first, and the steps that compute."""
