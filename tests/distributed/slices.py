"""A model that is split across several processes."""

from __future__ import annotations

import torch

from llmkit.config.schema import Config
from llmkit.distributed.processes import join_processes
from llmkit.models import pretrained
from llmkit.training.shards.parts import local


def hold_slices(directories: list[str]) -> None:
    """Each process holds its share of the matrices of each model, and gets the logits of the whole
    one, with the same bits as every other process."""
    ids = torch.arange(24).reshape(2, 12)
    with join_processes("fp32", 60, one_model=True) as processes:
        for directory in directories:
            whole = pretrained.load_model(pretrained.open_model(directory)).eval()
            keys = {"model": {"name_or_path": directory, "tp_plan": "auto"}}
            opened = pretrained.to_use(Config.model_validate(keys))
            assert opened is not None
            divided = pretrained.load_model(opened).eval()
            with torch.inference_mode():
                expected, found = (model(input_ids=ids).logits for model in (whole, divided))
            assert (found - expected).abs().max() < 1e-5, directory
            for other in processes.accelerator.gather(found[None].clone()):
                assert torch.equal(other, found), directory
            own = sum(local(weight).numel() for weight in divided.parameters())
            share = own / sum(weight.numel() for weight in whole.parameters())
            assert 1 / processes.world_size <= share < 1.06 / processes.world_size, directory
