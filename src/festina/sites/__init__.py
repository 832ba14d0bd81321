"""Sites: the places in a denoiser whose output can be served instead of computed.

They form a tree: a stack (a list of blocks) or a region (a level of a U-Net), its blocks, their components. The tree is
found in the model's own structure (`festina.sites.discovery`); where that is not enough, a row says it
(`festina.sites.rows`). Names follow `festina.names`.
"""

from festina.sites.discovery import Block as Block
from festina.sites.levels import Levels as Levels
from festina.sites.levels import deep_regions as deep_regions
from festina.sites.levels import levels_of as levels_of
from festina.sites.levels import run_of as run_of
from festina.sites.rows import Row as Row
from festina.sites.rows import Stack as Stack
from festina.sites.rows import register as register
from festina.sites.stacks import first_attention as first_attention
from festina.sites.stacks import first_blocks as first_blocks
from festina.sites.stacks import stack_runs as stack_runs
from festina.sites.tree import Site as Site
from festina.sites.tree import Tree as Tree
from festina.sites.tree import block_sites as block_sites
from festina.sites.tree import component_sites as component_sites
from festina.sites.tree import entry_site as entry_site
from festina.sites.tree import find_denoiser as find_denoiser
from festina.sites.tree import region_sites as region_sites
from festina.sites.tree import resolve as resolve
from festina.sites.tree import sampler_of as sampler_of
from festina.sites.tree import self_attentions as self_attentions
from festina.sites.tree import site_modules as site_modules
from festina.sites.tree import site_tree as site_tree
