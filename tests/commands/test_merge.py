"""`llmkit merge`: experts that were trained apart become one model, a pure function of them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.storage import atomic
from tests.harness import Server
from tests.jobs import weights

from .conftest import Run

NAMES = ("code", "poems", "words")
TEXTS = {
    "code": "def return import class self for in range print lambda yield assert".split(),
    "poems": "stars moon night sea wind river mountain cloud rain snow flower bird".split(),
    "words": "the cat sat on a mat and saw how far the little dog had run".split(),
}
SETTINGS = """
data:
  document: line
  block_size: 32
  mixture: {code: {files: code.txt}, poems: {files: poems.txt}, words: {files: words.txt}}
model: {architecture: ARCHITECTURE, config: {hidden_size: 32, num_hidden_layers: 2}}
tokenizer: {vocab_size: 300}
train: {max_steps: 6, global_batch_size: 8, learning_rate: 0.01, optimizer: adamw, compile: false}
generation: {max_new_tokens: 4}
"""


class Lab:
    """A directory with a seed and its branches."""

    def __init__(self, directory: Path, llmkit: Run, architecture: str, freeze: str) -> None:
        self.directory, self.llmkit, self.freeze = directory, llmkit, freeze
        chance = random.Random(0)
        for name, words in TEXTS.items():
            lines = (" ".join(chance.choices(words, k=12)) for _ in range(60))
            (directory / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.config = directory / "experts.yaml"
        text = SETTINGS.replace("ARCHITECTURE", architecture)
        for name in NAMES:
            text = text.replace(f"{name}.txt", str(directory / f"{name}.txt"))
        self.config.write_text(text, encoding="utf-8")
        self.run("pretrain", self.config, "-o", directory / "seed")
        for name in NAMES:
            self.branch(name, directory / name)

    def branch(self, name: str, run: Path) -> None:
        """Trains one expert."""
        self.run("pretrain", self.config, "--model", self.directory / "seed", "--expert", name,
                 "-o", run, f"train.freeze={self.freeze}")  # fmt: skip

    def run(self, *arguments: object) -> dict[str, Any]:
        """The result of a command that succeeds."""
        done = self.llmkit(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def merge(self, run: str, names: tuple[str, ...] = NAMES, *changes: object) -> Path:
        """Merges the branches of these names into a run; its final model."""
        given = [f"--expert={name}={self.directory / name}" for name in names]
        self.run("merge", *given, "-o", self.directory / run, *changes)
        return self.directory / run / "final"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, llmkit: Run) -> Lab:
    """Branches that share all but their feed-forward networks."""
    return Lab(tmp_path_factory.mktemp("frozen"), llmkit, "qwen3", "trunk")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, llmkit: Run) -> Lab:
    """Branches of which all weights were trained."""
    return Lab(tmp_path_factory.mktemp("free"), llmkit, "llama", "none")


def files(model: Path) -> dict[str, bytes]:
    """The files of a merged model but the card, which states the command."""
    skipped = {"README.md", "manifest.json"}
    found = (path for path in sorted(model.rglob("*")) if path.is_file())
    return {str(p.relative_to(model)): p.read_bytes() for p in found if p.name not in skipped}


def test_a_frozen_trunk_stays_that_of_the_seed(frozen: Lab) -> None:
    seed, branch = (weights(frozen.directory / name) for name in ("seed", "code"))
    changed = {name for name in seed if not torch.equal(seed[name], branch[name])}
    assert changed == {name for name in seed if ".mlp." in name}


def test_a_branch_is_judged_by_its_domain(frozen: Lab) -> None:
    for name in NAMES:
        result = json.loads((frozen.directory / name / "run.json").read_text())["result"]
        found, domains = result["validation"], result["domains"]
        for metric in ("loss", "perplexity", "bits_per_byte"):
            assert found[metric] == found[f"{metric}/{name}"]
            assert found[metric] == domains[name]["after"][metric]
        assert {other for other, row in domains.items() if "after" in row} == set(NAMES)
        baseline = result["baseline"]["unigram"]["loss"]
        assert baseline < 4  # a few words; those of other domains are unknown to it


@pytest.mark.parametrize("order", [("words", "code", "poems"), ("poems", "words", "code")])
@pytest.mark.parametrize("into", ["moe", "average", "ensemble"])
def test_the_order_of_experts_changes_no_byte(frozen: Lab, free: Lab, into: str, order) -> None:
    for lab in (frozen, free):
        one = files(lab.merge(f"one-{into}", NAMES, f"merge.into={into}"))
        other = files(lab.merge(f"other-{into}-{order[0]}", order, f"merge.into={into}"))
        assert one == other


@pytest.mark.parametrize("into", ["moe", "ensemble"])
def test_an_expert_can_join_later_and_leave_again_without_a_trace(frozen: Lab, into: str) -> None:
    how = f"merge.into={into}"
    whole = frozen.merge(f"whole-{into}", NAMES, how)
    two = frozen.merge(f"two-{into}", ("code", "words"), how)
    joined = frozen.merge(f"joined-{into}", ("poems",), how, "--model", two.parent)
    assert files(joined) == files(whole)
    left = frozen.merge(f"left-{into}", (), how, "--model", joined.parent, "--without", "poems")
    assert files(left) == files(two)


@pytest.mark.parametrize("into", ["moe", "ensemble"])
def test_one_expert_of_a_merge_is_the_branch(frozen: Lab, into: str) -> None:
    whole = frozen.merge(f"source-{into}", NAMES, f"merge.into={into}")
    only = frozen.merge(f"only-{into}", (), "--model", whole.parent, "--only", "poems")
    for name in ("model.safetensors", "experts.json", "experts.safetensors"):
        assert (only / name).read_bytes() == (frozen.directory / "poems/final" / name).read_bytes()


def test_an_expert_of_averaged_weights_is_not_added_to(free: Lab) -> None:
    two = free.merge("two", ("code", "words"), "merge.into=moe")
    given = f"poems={free.directory / 'poems'}"
    done = free.llmkit("merge", "--model", two.parent, "--expert", given, "-o",
                       free.directory / "no", "merge.into=moe")  # fmt: skip
    assert done.returncode == 78
    assert "averaged weights" in done.stderr
    assert "merge all the experts again" in done.stderr


def test_removal_states_what_it_does_not_undo(free: Lab, frozen: Lab) -> None:
    for lab, warns in ((free, True), (frozen, False)):
        whole = lab.merge("all", NAMES, "merge.into=moe")
        result = lab.run("merge", "--model", whole.parent, "--without", "poems", "-o",
                         lab.directory / "some", "merge.into=moe")  # fmt: skip
        said = " ".join(result.get("warnings", []))
        assert ("stay averaged" in said) == warns


def test_a_merge_reads_the_same_in_plain_transformers(free: Lab) -> None:
    model = free.merge("plain", NAMES, "merge.into=moe")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor([tokenizer.encode("the cat sat on a mat")])
    found = AutoModelForCausalLM.from_pretrained(model)
    assert found.config.model_type == "mixtral"
    assert torch.isfinite(found(ids).logits).all()


def test_a_branch_on_another_machine_is_the_same_branch(
    frozen: Lab, tmp_path: Path, llmkit: Run
) -> None:
    frozen.branch("code", tmp_path / "code")
    one, other = (files(each / "code" / "final") for each in (frozen.directory, tmp_path))
    assert one == other
    assert not any(str(frozen.directory).encode() in content for content in one.values())


def test_an_expert_is_not_resumed_from_another_seed(frozen: Lab, tmp_path: Path) -> None:
    shutil.copytree(frozen.directory / "seed", tmp_path / "seed")
    run = (
        "pretrain", frozen.config, "--model", tmp_path / "seed", "--expert", "code",
        "-o", tmp_path / "code",
    )  # fmt: skip
    frozen.run(*run)
    config = tmp_path / "seed/final/config.json"
    config.write_text(config.read_text().replace("{", '{"other": 1,', 1))
    (tmp_path / "seed/final/manifest.json").unlink()
    done = frozen.llmkit(*run)
    assert done.returncode == 78
    assert "the seed has changed" in done.stderr


def test_a_model_in_a_shared_config_is_not_an_expert(frozen: Lab) -> None:
    shared = frozen.directory / "begun.yaml"
    model = f"model: {{name_or_path: {frozen.directory / 'seed'}}}\n"
    shared.write_text(re.sub(r"^model: .*\n", model, frozen.config.read_text(), flags=re.M))
    given = [f"--expert={name}={frozen.directory / name}" for name in NAMES]
    frozen.run("merge", shared, *given, "-o", frozen.directory / "begun")
    seed = ("--model", frozen.directory / "seed")
    done = frozen.llmkit("merge", *given, *seed, "-o", frozen.directory / "no6")
    assert "was not trained as the expert" in done.stderr


def test_every_command_reads_an_ensemble(free: Lab) -> None:
    model = free.merge("read", NAMES, "merge.into=ensemble").parent
    found = free.run("evaluate", free.config, "--model", model, "--by-domain")
    assert {row["domain"] for row in found["by_domain"]} == set(NAMES)
    prompts = [f"--prompt={text}" for text in ("the cat", "stars", "def return", "rain snow bird")]
    together = texts(free, model, *prompts)
    assert together == [text for each in prompts for text in texts(free, model, each)]


def texts(lab: Lab, model: Path, *prompts: str) -> list[str]:
    """The texts that a model generates for prompts."""
    done = lab.llmkit("generate", "--model", model, *prompts, "seed=3", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["text"] for line in done.stdout.splitlines()]


def test_the_loss_of_an_ensemble_is_at_most_the_bound(free: Lab) -> None:
    model = free.merge("bound", NAMES, "merge.into=ensemble").parent
    branches = [part for name in NAMES for part in ("--model", free.directory / name)]
    short = free.directory / "short.txt"  # a document fits into one window
    short.write_text("".join(f"{' '.join(words[:4])}\n" for words in TEXTS.values()))
    result = free.run("evaluate", "--text", short, "--model", model,
                      *branches, "data.document=line", "evaluation.documents=separate")  # fmt: skip
    ensemble, *experts = [each["nll"] for each in result["models"]]
    documents = result["models"][0]["documents"]
    assert ensemble <= min(experts) + documents * torch.tensor(3.0).log().item()


def test_an_average_can_be_the_seed_of_experts_but_no_expert(free: Lab) -> None:
    average = free.merge("mean", NAMES, "merge.into=average").parent
    for given in (("--model", average), (f"--expert=mean={average}",)):
        done = free.llmkit("merge", *given, "--expert", f"words={free.directory / 'words'}",
                           "-o", free.directory / "no3")  # fmt: skip
        assert done.returncode == 78
        assert "is the average of code, poems, words" in done.stderr
    branch = free.directory / "of-mean"
    free.run("pretrain", free.config, "--model", average, "--expert", "code", "-o", branch)
    record = json.loads((branch / "final/experts.json").read_text())
    assert (record["kind"], record["lost"]) == ("branch", "nothing")
    assert [each["name"] for each in record["experts"]] == ["code"]


def test_a_mixture_of_experts_is_not_a_seed_and_an_ensemble_is_not_trained(free: Lab) -> None:
    moe = free.merge("no-seed", NAMES, "merge.into=moe").parent
    ensemble = free.merge("untrained", NAMES, "merge.into=ensemble").parent
    for switch in ((), ("--dry-run",)):
        for given, what in (
            ((moe, "--expert", "code"), "is a mixture of 3 experts"),
            ((ensemble, "--expert", "code"), "is an ensemble"),
            ((ensemble,), "is an ensemble"),
        ):
            done = free.llmkit("pretrain", free.config, "--model", *given, *switch,
                               "-o", free.directory / "no4")  # fmt: skip
            assert done.returncode == 78
            assert what in done.stderr
            assert not (free.directory / "no4").exists()


def test_a_merge_states_its_request_and_the_hashes_of_its_experts(frozen: Lab) -> None:
    run = frozen.merge("facts", NAMES, "merge.into=moe").parent
    facts = json.loads((run / "run.json").read_text())
    hashes = {
        f"expert of {name}": json.loads(
            (frozen.directory / name / "final/experts.json").read_text()
        )["experts"][0]["weights"]
        for name in NAMES
    }
    assert hashes.items() <= facts["content"].items()
    assert facts["request"]["merge.into"] == "moe"
    assert facts["arguments"][0] == "merge"
    again = frozen.run("merge", run / "config.yaml", "-o", frozen.directory / "facts-2")
    assert files(Path(again["model_dir"])) == files(run / "final")


def test_a_merge_is_not_repeated_and_not_replaced_by_another(frozen: Lab) -> None:
    model = frozen.merge("once", NAMES)
    written = model.stat().st_ctime_ns
    assert frozen.merge("once", NAMES).stat().st_ctime_ns == written
    for names, change in ((NAMES, "merge.into=moe"), (NAMES[:2], "merge.into=ensemble")):
        given = [f"--expert={name}={frozen.directory / name}" for name in names]
        done = frozen.llmkit("merge", *given, change, "-o", model.parent)
        assert done.returncode == 78
        assert "another merge" in done.stderr
    assert model.stat().st_ctime_ns == written
    weights = next(model.rglob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert files(frozen.merge("once", NAMES)) == files(frozen.merge("once-2", NAMES))


def test_a_run_resumes_with_other_keys_of_merge(frozen: Lab) -> None:
    shared = frozen.directory / "shared.yaml"
    shared.write_text(frozen.config.read_text() + "merge: {into: moe}\n")
    frozen.run("pretrain", shared, "--model", frozen.directory / "seed", "--expert", "code",
               "-o", frozen.directory / "code", "train.freeze=trunk")  # fmt: skip


@pytest.mark.parametrize("into", ["ensemble", "moe", "average"])
def test_a_merge_is_measured_beside_its_seed_and_experts(free: Lab, into: str) -> None:
    run = free.directory / f"measured-{into}"
    given = [f"--expert={name}={free.directory / name}" for name in NAMES]
    result = free.run("merge", free.config, *given, "-o", run, f"merge.into={into}")
    facts = json.loads((run / "run.json").read_text())
    assert facts["result"] == {key: value for key, value in result.items() if key != "warnings"}

    def bits(model: Path) -> dict[str, float]:
        found = free.run("evaluate", free.config, "--model", model)
        return {row["domain"]: row["bits_per_byte"] for row in found["by_domain"]}

    merged, seed = bits(run), bits(free.directory / "seed")
    for name in NAMES:
        found, own = result["domains"][name], bits(free.directory / name)
        assert found["after"]["bits_per_byte"] == pytest.approx(merged[name], rel=1e-5)
        assert found["before"]["bits_per_byte"] == pytest.approx(seed[name], rel=1e-5)
        assert found["expert"]["bits_per_byte"] == pytest.approx(own[name], rel=1e-5)
        change = merged[name] - seed[name]
        assert found["change"]["bits_per_byte"] == pytest.approx(change, abs=1e-5)
        worse = any(f"worse than the seed on {name}" in text for text in result["warnings"])
        assert worse == (merged[name] > 1.01 * seed[name])
        validation = json.loads((free.directory / name / "run.json").read_text())["result"]
        own_loss = validation["domains"][name]["after"]["loss"]
        assert found["expert"]["loss"] == pytest.approx(own_loss, rel=1e-2)  # in bf16
    if into != "average":
        experts = free.run("evaluate", free.config, "--model", run, "evaluation.experts=true")
        shares = {(row["domain"], row["expert"]): row["share"] for row in experts["experts"]}
        for row in result["shares"]:
            assert row["share"] == pytest.approx(shares[row["domain"], row["expert"]], abs=1e-5)
    page, card = ((run / name).read_text() for name in ("report.html", "final/README.md"))
    assert "its expert alone" in page
    assert f"{result['validation']['bits_per_byte']:.4g}" in card
    compared = free.directory / "compared.html"
    free.run("report", run, free.directory / "seed", "-o", compared)
    assert free.run("push", run, "--repo", "someone/merged", "--dry-run")["files"]


def test_a_merge_is_not_made_again_to_be_measured(free: Lab) -> None:
    model = free.merge("later", NAMES)
    written = (model / "manifest.json").stat().st_ctime_ns
    assert free.merge("later", NAMES, free.config) == model
    assert (model / "manifest.json").stat().st_ctime_ns == written
    facts = json.loads((model.parent / "run.json").read_text())
    assert facts["result"]["domains"].keys() == set(NAMES)
    assert str(free.config) in facts["arguments"]


def test_text_that_is_elsewhere_and_a_seed_that_is_lost_are_reported(
    free: Lab, tmp_path: Path
) -> None:
    for name in (*NAMES, "seed"):
        shutil.copytree(free.directory / name, tmp_path / "runs" / name)
        facts = tmp_path / "runs" / name / "run.json"
        facts.write_text(facts.read_text().replace(f"{free.directory}/seed", "/elsewhere/seed"))
    config = tmp_path / "some.yaml"
    config.write_text(free.config.read_text().replace(f"{free.directory}/poems.txt", "/gone.txt"))
    given = [f"--expert={name}={tmp_path / 'runs' / name}" for name in NAMES]
    found = free.run("merge", config, *given, "-o", tmp_path / "beside")
    assert any("not measured" in text and "poems" in text for text in found["warnings"])
    assert found["domains"].keys() == {"code", "words"}
    assert all("before" in each for each in found["domains"].values())
    shutil.rmtree(tmp_path / "runs/seed")
    found = free.run("merge", config, *given, "-o", tmp_path / "lost")
    assert any("the seed was not found" in text for text in found["warnings"])
    assert all("before" not in each for each in found["domains"].values())


def test_text_that_the_experts_were_trained_on_is_reported(free: Lab) -> None:
    run = free.merge("seen", NAMES).parent
    result = free.run("evaluate", "--model", run, "--text", free.directory / "poems.txt",
                      "data.document=line")  # fmt: skip
    assert any("was trained on" in text for text in result["warnings"])
    given = [f"--expert={name}={free.directory / name}" for name in NAMES]
    result = free.run("merge", free.config, *given, "-o", free.directory / "other-split", "seed=5")
    assert any("are not held-out figures" in text for text in result["warnings"])


def test_longrope_is_refused_before_weights_are_read(frozen: Lab, tmp_path: Path) -> None:
    for name in NAMES[:2]:
        shutil.copytree(frozen.directory / name / "final", tmp_path / name)
        record = json.loads((tmp_path / name / "experts.json").read_text())
        width = record["dense"]["head_dim"] // 2
        record["dense"]["rope_parameters"] = {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * width,
            "long_factor": [2.0] * width, "original_max_position_embeddings": 16,
        }  # fmt: skip
        (tmp_path / name / "experts.json").write_text(json.dumps(record))
        (tmp_path / name / "manifest.json").unlink()
        weights = tmp_path / name / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    given = [f"--expert={name}={tmp_path / name}" for name in NAMES[:2]]
    done = frozen.llmkit("merge", *given, "-o", tmp_path / "no", "--dry-run")
    assert done.returncode == 78
    assert "depend on the length" in done.stderr


REFUSED = [
    ((), "no experts are given"),
    (("--expert", "code"), "--expert DOMAIN=code"),
    (("--expert", "../code=CODE"), "'../code' cannot name an expert"),
    (("--expert", "a.b=CODE"), "'a.b' cannot name an expert"),
    (("--expert", "average=CODE", "--expert", "b=CODE"), "a value of merge.shared"),
    (("--expert", "a=CODE", "--expert", "A=CODE"), "there are two experts of A, a"),
    (("--expert", "code=SEED"), "was not trained as the expert"),
    (("--expert", "code=CODE"), "a merge needs two"),
    (("--expert", "code=CODE", "--expert", "law=MISSING"), "there is no model directory"),
    (("--expert", "a=CODE", "--expert", "b=CODE", "merge.shared=x", "merge.into=moe"), "of x"),
    (("--expert", "a=CODE", "--expert", "b=CODE", "merge.top_k=3", "merge.into=moe"), "3 of 2"),
    (
        (
            "--expert",
            "a=CODE",
            "--expert",
            "b=CODE",
            "merge.top_k=1",
            "merge.into=moe",
            "merge.router=random",
        ),
        "cannot be trained",
    ),
    (("--expert", "a=CODE", "--expert", "b=CODE", "--without", "c"), "the experts are a, b"),
    (("--expert", "a=CODE", "--expert", "b=OTHER"), "different"),
]


@pytest.mark.parametrize(("line", "what"), REFUSED)
def test_what_cannot_be_merged_is_refused_with_what_to_do(
    frozen: Lab, free: Lab, line: tuple[str, ...], what: str
) -> None:
    places = {
        "SEED": frozen.directory / "seed", "CODE": frozen.directory / "code",
        "MISSING": frozen.directory / "missing", "OTHER": free.directory / "poems",
    }  # fmt: skip
    given = list(line)
    for name, place in places.items():
        given = [word.replace(f"={name}", f"={place}") for word in given]
    done = frozen.llmkit("merge", *given, "-o", frozen.directory / "refused")
    assert done.returncode in (2, 66, 78), done.stderr
    assert what in done.stderr
    assert "next:" in done.stderr
    assert not (frozen.directory / "refused" / "final").exists()


@pytest.mark.parametrize("into", ["ensemble", "moe", "average"])
def test_an_expert_with_a_non_finite_weight_is_named(
    frozen: Lab, tmp_path: Path, into: str
) -> None:
    shutil.copytree(frozen.directory / "code/final", tmp_path / "code")
    (tmp_path / "code/manifest.json").unlink()
    state = load_file(tmp_path / "code/model.safetensors")
    state["model.norm.weight"][3] = torch.nan
    save_file(state, tmp_path / "code/model.safetensors", {"format": "pt"})
    done = frozen.llmkit("merge", "--expert", f"code={tmp_path / 'code'}", "--expert",
                         f"poems={frozen.directory / 'poems'}", f"merge.into={into}",
                         "-o", tmp_path / "merged")  # fmt: skip
    assert done.returncode == 65
    assert "the expert of code" in done.stderr
    assert "model.norm.weight" in done.stderr
    assert not (tmp_path / "merged/final").exists()


def test_a_killed_merge_leaves_no_half(frozen: Lab, trials: Server) -> None:
    run = frozen.directory / "killed"
    given = [f"--expert={name}={frozen.directory / name}" for name in NAMES]
    for delay in (0.05, 0.2, 0.4, 0.8):
        trial = trials.start("merge", *given, "-o", str(run), "merge.into=ensemble")
        time.sleep(delay)
        os.kill(trial.process, signal.SIGKILL)
        trial.end()
        if (run / "final").exists():
            atomic.verify(run / "final")
            assert json.loads((run / "run.json").read_text())["content"]  # written before it
    whole = frozen.merge("killed", NAMES, "merge.into=ensemble")
    assert files(whole) == files(frozen.merge("again", NAMES, "merge.into=ensemble"))
    assert not [path for path in run.iterdir() if path.name.startswith(".tmp")]


def test_a_trained_merge_keeps_the_names_of_its_experts(free: Lab) -> None:
    merged = free.merge("unmixed", NAMES, "merge.into=moe", "merge.router=random").parent
    mixed = free.directory / "mixed"
    free.run("pretrain", free.config, "--model", merged, "-o", mixed, "train.max_steps=2")
    record = json.loads((mixed / "final" / "experts.json").read_text())
    assert [expert["name"] for expert in record["experts"]] == list(NAMES)
    done = free.llmkit("merge", "--model", mixed, "--expert",
                       f"law={free.directory / 'code'}", "-o", free.directory / "no2")  # fmt: skip
    assert "was trained after the merge" in done.stderr
    written = load_file(mixed / "final" / "model.safetensors")
    assert any("experts" in name for name in written)
