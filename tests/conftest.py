"""Shared fixtures: one tiny pipeline per supported class, quiet and on few threads."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parent))

import tiny

diffusers_logging.set_verbosity_error()
transformers_logging.set_verbosity_error()
torch.set_num_threads(1)

PIPELINES = {"pixart": tiny.pixart_pipeline, "dit": tiny.dit_pipeline, "flux": tiny.flux_pipeline}


@pytest.fixture(params=sorted(PIPELINES))
def pipe(request):
    """A tiny pipeline of each class in turn."""
    return PIPELINES[request.param]()


@pytest.fixture
def pixart():
    """A tiny PixArt pipeline."""
    return tiny.pixart_pipeline()
