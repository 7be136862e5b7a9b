"""What each way to merge domain experts gains and loses, by domain.

Novels, Tang poems and Python code: one seed on all three, a branch for each, then every merge,
beside dense training from the same seed for the wall-clock of one branch (three machines against
one) and for the work of all three (equal tokens). Figures are bits per byte of held-out text; each
row is the mean over the seeds of the runs. Runs are kept in DIRECTORY, so that the command resumes.

    .venv/bin/python scripts/bench/experts.py NOVELS HELD_OUT_NOVELS POEMS DIRECTORY
        [--steps 400] [--branch-steps 200] [--seeds 3] [--width 128] [--layers 4]

`--costs` prints only what merging three branches of 14 million weights costs: time, memory (in
models, beyond that of merging very small ones), and how many forward passes of a branch one of the
ensemble takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import processes
import torch

from llmkit.models import pretrained

LLMKIT = (sys.executable, "-m", "llmkit")
DOMAINS = ("novels", "poems", "code")
HELD_OUT_MODULES = 12  # every twelfth module of the standard library is held out
HELD_OUT_BYTES = 100_000  # of each domain


def code_files(directory: Path) -> tuple[Path, Path]:
    """The modules of the standard library, for training and held out, as two JSONL files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in library.glob("*.py") if path.stat().st_size > 2000)
    parts = (directory / "code.jsonl", directory / "code_held_out.jsonl")
    for part, path in enumerate(parts):
        chosen = [m for n, m in enumerate(modules) if (n % HELD_OUT_MODULES == 0) == bool(part)]
        texts = [module.read_text(encoding="utf-8", errors="replace") for module in chosen]
        if part:
            texts = [text[: HELD_OUT_BYTES // len(texts)] for text in texts]
        lines = (json.dumps({"text": text}) for text in texts)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return parts


def poem_files(poems: Path, directory: Path) -> tuple[Path, Path]:
    """The poems, of which the last are held out."""
    whole = poems.read_text(encoding="utf-8").split("\n\n")
    cut = len(whole) - len(whole) * HELD_OUT_BYTES // poems.stat().st_size
    parts = (directory / "poems.txt", directory / "poems_held_out.txt")
    for path, some in zip(parts, (whole[:cut], whole[cut:]), strict=True):
        path.write_text("\n\n".join(some) + "\n", encoding="utf-8")
    return parts


def cut_file(path: Path, directory: Path) -> Path:
    """The first paragraphs of a file."""
    text = path.read_text(encoding="utf-8")[:HELD_OUT_BYTES]
    part = directory / "novels_held_out.txt"
    part.write_text(text[: text.rindex("\n")], encoding="utf-8")
    return part


class Runs:
    """The runs of one seed."""

    def __init__(self, asked: argparse.Namespace, seed: int) -> None:
        self.asked, self.seed = asked, seed
        self.directory = asked.directory / f"seed-{seed}"
        self.config = asked.directory / "experts.yaml"

    def train(self, name: str, steps: int, *changes: object) -> Path:
        """A run of this many steps, which is not repeated."""
        run = self.directory / name
        if not (run / "final").exists():
            processes.llmkit(
                "pretrain", self.config, "-o", run, f"seed={self.seed}",
                f"train.max_steps={steps}", *changes,
            )  # fmt: skip
        return run

    def branches(self, freeze: str) -> list[str]:
        """The options that name the branches trained with a part frozen."""
        given = []
        for name in DOMAINS:
            run = self.train(
                f"{name}-{freeze}", self.asked.branch_steps, "--model", self.directory / "seed",
                "--expert", name, f"train.freeze={freeze}",
            )  # fmt: skip
            given.append(f"--expert={name}={run}")
        return given

    def merge(self, name: str, freeze: str, *changes: str) -> Path:
        """A merge of the branches."""
        run = self.directory / name
        processes.llmkit("merge", *self.branches(freeze), "-o", run, *changes)
        return run

    def bits(self, *models: Path) -> dict[str, Any]:
        """The result of `evaluate` for these models on all domains."""
        given = [part for model in models for part in ("--model", model)]
        return processes.llmkit("evaluate", self.config, *given, "evaluation.experts=true")

    def table(self) -> dict[str, dict[str, float]]:
        """Bits per byte of each domain, by row of the table."""
        asked = self.asked
        seed = self.train("seed", asked.steps)
        dense = {
            "dense, the wall-clock of a branch": asked.branch_steps,
            "dense, the work of all branches": asked.branch_steps * len(DOMAINS),
        }
        rows = {"seed": _by_domain(self.bits(seed))}
        for name, steps in dense.items():
            run = self.train(f"dense-{steps}", steps, "--model", seed)
            rows[name] = _by_domain(self.bits(run))
        for freeze in asked.freeze:
            ensemble = self.merge(f"ensemble-{freeze}", freeze, "merge.into=ensemble")
            found = self.bits(ensemble)
            rows[f"each branch on its domain ({freeze} frozen)"] = _alone(found)
            rows[f"ensemble ({freeze} frozen)"] = _by_domain(found)
            average = self.merge(f"average-{freeze}", freeze, "merge.into=average")
            rows[f"average ({freeze} frozen)"] = _by_domain(self.bits(average))
            for shared in ("frequency", "average") if freeze == "none" else ("frequency",):
                moe = self.merge(
                    f"moe-{freeze}-{shared}", freeze, "merge.into=moe", f"merge.shared={shared}"
                )
                found = self.bits(moe)
                how = f"({freeze} frozen, shared by {shared})"
                rows[f"moe, the expert of the domain forced {how}"] = _alone(found)
                rows[f"moe, routed {how}"] = _by_domain(found)
        return rows


COST_ROUNDS = 9


class Costs:
    """What merging branches of 14 million weights costs; they are trained for a step."""

    LARGE = ({"hidden_size": 384, "num_hidden_layers": 6}, 8192)
    SMALL = ({"hidden_size": 32, "num_hidden_layers": 2}, 300)

    def __init__(self, asked: argparse.Namespace) -> None:
        self.directory = asked.directory / "costs"
        self.config = json.loads((asked.directory / "experts.yaml").read_text(encoding="utf-8"))

    def branches(self, name: str, shape: dict[str, int], vocabulary: int) -> list[str]:
        """The options that name three branches of a seed with this shape."""
        place = self.directory / name
        place.mkdir(parents=True, exist_ok=True)
        domains = self.config["data"]["mixture"].items()
        text = {domain: {"files": each["validation_files"]} for domain, each in domains}
        data = {**self.config["data"], "mixture": text, "validation_fraction": 0}
        model = {**self.config["model"], "config": shape}
        train = {**self.config["train"], "max_steps": 1}
        config = {"data": data, "model": model, "train": train}
        config["tokenizer"] = {"vocab_size": vocabulary}
        (place / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        runs = {"seed": ()} | {n: ("--model", place / "seed", "--expert", n) for n in DOMAINS}
        for run, options in runs.items():
            if not (place / run / "final").exists():
                line = ("pretrain", place / "config.yaml", "-o", place / run, *options, "--quiet")
                subprocess.run([*LLMKIT, *map(str, line)], check=True)
        return [f"--expert={domain}={place / domain}" for domain in DOMAINS]

    def merge(self, given: list[str], into: str) -> tuple[float, int]:
        """The seconds of a merge, and the peak of its memory in bytes."""
        run = self.directory / "merged" / into
        shutil.rmtree(run, ignore_errors=True)
        began = time.monotonic()
        line = [*LLMKIT, "merge", *given, "-o", str(run), f"merge.into={into}", "--quiet"]
        process = subprocess.Popen(line)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(line)} failed")
        return time.monotonic() - began, used.ru_maxrss * 1024

    def print_costs(self) -> None:
        """Prints the figures of each way to merge."""
        small = self.branches("small", *self.SMALL)
        large = self.branches("large", *self.LARGE)
        file = self.directory / "large" / DOMAINS[0] / "final/model.safetensors"
        for into in ("average", "moe", "ensemble"):
            (_, least), (seconds, most) = (self.merge(given, into) for given in (small, large))
            models = (most - least) / file.stat().st_size
            print(f"merge.into={into}: {seconds:.1f} s, the memory of {models:.2f} models")
        print(f"ensemble: {self.passes():.2f} forward passes of a branch")

    def passes(self) -> float:
        """The time of a forward pass of the merged ensemble, beside that of one of its experts."""
        opened = pretrained.open_model(str(self.directory / "merged/ensemble"))
        ensemble = pretrained.load_model(opened).eval()
        ids = torch.randint(0, opened.config.vocab_size, (8, 128))
        times: dict[str, list[float]] = {"ensemble": [], "expert": []}
        with torch.inference_mode():
            for _ in range(COST_ROUNDS):
                for name, model in (("ensemble", ensemble), ("expert", ensemble.experts[0])):
                    began = time.process_time()  # other jobs count less than by the clock
                    model(ids, use_cache=False)
                    times[name].append(time.process_time() - began)
        return statistics.median(times["ensemble"]) / statistics.median(times["expert"])


def _by_domain(result: dict[str, Any]) -> dict[str, float]:
    return {row["domain"]: row["bits_per_byte"] for row in result["by_domain"]}


def _alone(result: dict[str, Any]) -> dict[str, float]:
    rows = result["experts"]
    return {r["domain"]: r["bits_per_byte_alone"] for r in rows if r["domain"] == r["expert"]}


def main() -> None:
    """Prints the table of means over the seeds, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("novels", "held_out_novels", "poems", "directory"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--branch-steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--freeze", nargs="+", default=["none", "trunk"])
    parser.add_argument("--costs", action="store_true")
    asked = parser.parse_args()
    asked.directory.mkdir(parents=True, exist_ok=True)
    files = {
        "novels": (asked.novels, cut_file(asked.held_out_novels, asked.directory)),
        "poems": poem_files(asked.poems, asked.directory),
        "code": code_files(asked.directory),
    }
    mixture = {
        name: {"files": str(train), "validation_files": str(held_out), "weight": 1}
        for name, (train, held_out) in files.items()
    }
    config = {
        "data": {"mixture": mixture, "block_size": 128, "document": "blank_line"},
        "model": {
            "architecture": "qwen3",
            "config": {"hidden_size": asked.width, "num_hidden_layers": asked.layers},
        },
        "tokenizer": {"vocab_size": 2048},
        "train": {
            "global_batch_size": 16, "optimizer": "adamw", "learning_rate": 0.003,
            "compile": False, "max_eval_samples": 64,
        },
    }  # fmt: skip
    # JSON is YAML.
    (asked.directory / "experts.yaml").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if asked.costs:
        Costs(asked).print_costs()
        return
    began = time.monotonic()
    tables = [Runs(asked, seed).table() for seed in range(asked.seeds)]
    print(f"{'bits per byte of held-out text':64}" + "".join(f"{n:>9}" for n in (*DOMAINS, "mean")))
    means_of_rows = {}
    for row in tables[0]:
        means = {n: sum(t[row][n] for t in tables) / len(tables) for n in DOMAINS}
        means_of_rows[row] = means
        values = [*means.values(), sum(means.values()) / len(means)]
        print(f"{row:64}" + "".join(f"{value:9.3f}" for value in values))
    print(json.dumps({"rows": means_of_rows, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
