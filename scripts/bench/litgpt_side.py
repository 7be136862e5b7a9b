"""litgpt's side of `train.py`, run by a Python that has litgpt: the same llama trained as `litgpt
pretrain` trains it (bf16-mixed, its own compiled model, its chunked loss, AdamW).
"""

from __future__ import annotations

import argparse
import time

import lightning
import torch
import turns
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vocabulary", "block", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args()
    fabric = lightning.Fabric(devices=1, precision="bf16-mixed")
    fabric.launch()
    torch.manual_seed(0)
    config = Config(
        block_size=asked.block, vocab_size=asked.vocabulary, padded_vocab_size=asked.vocabulary,
        n_layer=6, n_head=6, n_query_groups=6, n_embd=384, intermediate_size=1024, bias=False,
        rotary_percentage=1.0, parallel_residual=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", 
    )  # fmt: skip
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    model = fabric.setup(torch.compile(model))
    fused = fabric.device.type == "cuda"
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
        )
    )
    ids = torch.randint(asked.vocabulary, (4096, asked.block + 1), device=fabric.device)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for step in range(steps):
            first = step * asked.batch % (len(ids) - asked.batch)
            rows = ids[first : first + asked.batch]
            logits = model(rows[:, :-1].contiguous())
            loss = chunked_cross_entropy(logits, rows[:, 1:].contiguous())
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
        if fused:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    turns.serve(run)


if __name__ == "__main__":
    main()
