"""Shared fixtures: one tiny pipeline per supported class, quiet and on few threads, and the command line."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from festina.cli.main import main

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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline in a folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny.pixart_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def festina(monkeypatch, capsys):
    """Run a command in this process; returns exit code, output and errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["festina", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return stopped.value.code or 0, shown.out, shown.err

    return run
