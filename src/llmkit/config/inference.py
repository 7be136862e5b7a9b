"""The sections of a config that use models: `generation`, `predict`, `evaluation`, `merge`, `serve`
and `export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.jobs import For
from llmkit.config.types import (
    Auto,
    Count,
    ExpertName,
    FilePath,
    Finite,
    NameOrPath,
    Names,
    NamesOrPaths,
    Port,
    Positive,
    Rate,
    Section,
    ServedModels,
    Share,
    TextList,
    Whole,
)

_TALK = For("generate/continuation", "chat")
_SEQ2SEQ = "finetune/sequence_to_sequence"
_TARGETS = "generate/sequence_to_sequence"
_ANSWERS = For("generate", "serve", "evaluate/references", "finetune/completion", _SEQ2SEQ)
_INFERENCE = For("generate", "chat", "serve", "evaluate/references")
_WRITING = For("generate/continuation", "chat", "evaluate/references")
_WRITTEN = For(*_WRITING.jobs, _TARGETS)
_PHRASED = For(*_WRITING.jobs, "serve", "pretrain", "finetune/completion")
_TEXT = For("evaluate/text")
_REFERENCES = For("evaluate/references")
_MODELS = For(
    "evaluate/text", "evaluate/labels", "evaluate/tags", "evaluate/answers", "evaluate/tasks"
)


class GenerationConfig(Section):
    """How text is sampled: by `generate`, `chat` and `serve`, and as samples during training.

    Settings that change probabilities apply in the order of the keys from `repetition_penalty` to
    `typical_p`, as in transformers; a form (`choices`, `regex`, `json_schema`) applies before the
    temperature.
    """

    experts: Annotated[Names, For(*_TALK.jobs, "serve")] = ()
    """Experts of a merged model to use, by name; by default all."""
    max_new_tokens: Count = 64
    """Maximum number of new tokens."""
    min_new_tokens: Whole = 0
    """Minimum number of new tokens."""
    do_sample: bool = True
    """Sample tokens; `false` always takes the most likely one."""
    repetition_penalty: Positive = 1.0
    """Above 1, tokens that occur in the prompt or the generated text become less likely."""
    frequency_penalty: Finite = 0.0
    """Subtracted from a token's logit for each time it was generated."""
    presence_penalty: Finite = 0.0
    """Subtracted once from the logit of every token that was generated."""
    no_repeat_ngram_size: Whole = 0
    """No n-gram of this many tokens occurs twice; 0 disables this."""
    bad_words: Annotated[TextList, _PHRASED] = ()
    """Strings that are never generated, however they are tokenized."""
    temperature: Positive = 0.8
    """Below 1, probabilities become sharper; above 1, flatter."""
    top_k: Whole = 50
    """Sample only from this many most likely tokens; 0 samples from all."""
    top_p: Share = 1.0
    """Nucleus sampling: keep the most likely tokens up to this total probability."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Keep tokens with at least this fraction of the most likely token's probability."""
    typical_p: Share = 1.0
    """Locally typical sampling: keep the most typical tokens up to this total probability."""
    num_return_sequences: Annotated[
        Count,
        For(
            "generate/continuation",
            "pretrain",
            "finetune/completion",
            "finetune/preference",
            _SEQ2SEQ,
            _TARGETS,
        ),
    ] = 1
    """Continuations per prompt."""
    num_beams: Annotated[
        Count,
        For(
            "generate/continuation", "evaluate/references", "pretrain", "finetune/completion",
            "finetune/preference", _SEQ2SEQ, _TARGETS,
        ),
    ] = 1  # fmt: skip
    """Number of beams; above 1, beam search of transformers instead of sampling."""
    stop: TextList = ()
    """Strings that end the text; not included in it."""
    choices: Annotated[TextList, _TALK] = ()
    """The text is one of these strings."""
    regex: Annotated[str | None, _TALK] = None
    """Regular expression that the text matches; requires the extra `grammar`."""
    json_schema: Annotated[FilePath | None, _TALK] = None
    """File with a JSON schema that the text satisfies; requires the extra `grammar`."""
    seed: Whole | None = None
    """Seed of sampling; `seed` by default. For `serve`, the seed of requests without one, which is
    random by default."""
    prompts: Annotated[Names, For("generate")] = ()
    """Prompts to continue; for a masked model, with `[MASK]` or its tokenizer's mask token at each
    place to fill."""
    prompts_file: Annotated[FilePath | None, For("generate")] = None
    """File of prompts: lines, JSONL objects with `prompt`, or a table with a column `prompt`
    (`data.text_column` names another)."""
    output_file: Annotated[FilePath | None, For("generate")] = None
    """File for the results, as JSON lines; run the same command again to resume."""
    chat: Annotated[bool, For("generate/continuation", "evaluate/references")] = False
    """Send each prompt as a user message through the tokenizer's chat template."""
    system: Annotated[str | None, _WRITING] = None
    """System message of a chat."""
    split_special_tokens: Annotated[
        bool, For("generate/continuation", "generate/masks", "serve", "evaluate/references")
    ] = True
    """Read names of control tokens in a prompt, such as `</s>`, as text; with `false`, as the
    tokens. A chat template inserts its own either way, and the mask token of a masked model is
    always the token."""
    truncate_prompt: Annotated[bool, For(*_WRITTEN.jobs, "serve", "finetune/completion")] = False
    """Cut prompts that exceed the context from the left, or sources at their end, instead of
    refusing them."""
    explain: Annotated[Whole, For("generate/continuation", "generate/masks", "chat")] = 0
    """Show this many of the most likely tokens at each step; for a masked model, this many fillings
    of each mask (at least the best one)."""
    micro_batch_size: Annotated[Count | Auto, _ANSWERS] = "auto"
    """Maximum number of texts that one device generates at once; does not change texts in fp32."""
    prompt_lookup_num_tokens: Annotated[
        int, Field(ge=0, le=32), For(*_WRITING.jobs, "serve", "finetune/completion")
    ] = 8
    """Maximum number of tokens that are guessed from what followed the same words before, and
    checked together: a text that repeats its prompt or itself is generated faster, with the same
    tokens. Only for a text that is generated alone, on a CPU, by a model of a common family. 0
    disables it."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], _INFERENCE] = "auto"
    """Precision; `auto` is bf16 on an accelerator and fp32 on a CPU. In fp32 a seed gives the same
    text alone and in any batch; in bf16 texts may differ."""
    weights: Annotated[Literal["full", "int8"], For(*_WRITING.jobs, "serve")] = "full"
    """`int8` keeps one byte per weight: faster and slightly less exact; CPU only."""


class PredictConfig(Section):
    """How `predict` computes and writes labels, and in which precision `serve` computes them."""

    output: FilePath | None = None
    """File for the predictions, `.jsonl` or `.csv`; stdout by default."""
    format: Literal["auto", "jsonl", "csv"] = "auto"
    """Format of the predictions; `auto` follows the file name, with `jsonl` on stdout."""
    columns: Names = ("*",)
    """Input columns to repeat in the output besides the text; `*` is all, `[]` none. In a CSV they
    precede `label` and the probabilities, and an input column with one of those names gets the
    prefix `input_`."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], For("predict", "serve")] = "auto"
    """Precision; `auto` is bf16 where the hardware supports it, for speed: probabilities differ
    from those of `evaluate` by about 0.01, so close labels may differ too. fp32 gives the
    probabilities of `evaluate` and of plain transformers."""


class EvaluationConfig(Section):
    """What `evaluate` measures, and how."""

    window: Annotated[Annotated[int, Field(strict=True, ge=2)] | Auto, _TEXT] = "auto"
    """Context in tokens; `auto` is the model's maximum, at most 4096."""
    stride: Annotated[Count | Auto, _TEXT] = "auto"
    """Number of tokens between the starts of windows; `auto` is the window, without overlap. A
    smaller stride gives each token more context."""
    documents: Annotated[Literal["packed", "separate", "joined"], _TEXT] = "packed"
    """`packed`: windows hold several documents, isolated as in pretraining; `separate`: each
    document starts a window; `joined`: all documents are one text."""
    bos: Annotated[Literal["document", "window"], _TEXT] = "document"
    """Whether to insert the opening token before each document or before each window."""
    score_end: Annotated[bool, _TEXT] = True
    """Score the end-of-document token too, as in pretraining."""
    batch_tokens: Annotated[Count | Auto, _TEXT] = "auto"
    """Number of tokens that one device computes at once; changes no result."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], _MODELS] = "auto"
    """Precision; `auto` is fp32, which gives the figures of training and of plain transformers, and
    bf16 for weights stored in bf16, where the hardware supports it."""
    compare_with: Annotated[NamesOrPaths, For(*_MODELS.jobs, "evaluate/preferences")] = ()
    """More models, evaluated on the same data and compared in pairs."""
    by_document: Annotated[bool, _TEXT] = False
    """Report each document in a table row."""
    by_domain: Annotated[bool, _TEXT] = False
    """Report each domain in a table row: each file, or each value of `domain_column`. The domains
    of `data.mixture`, evaluated on their held-out text if there are no test files, are always
    reported."""
    experts: Annotated[bool, _TEXT] = False
    """For a model written by `merge`, report the share of each expert in each domain, the figures
    of each expert alone, and the regret of routing."""
    domain_column: Annotated[str | Whole | None, _TEXT] = None
    """Column of the domain, by name or by number from 0."""
    per_token: Annotated[FilePath | None, _TEXT] = None
    """File for a web page that shades each token by its loss."""
    log_samples: FilePath | None = None
    """File for every scored sample, as JSON lines."""
    label_errors: Annotated[FilePath | None, For("evaluate/labels")] = None
    """File for the rows whose label is probably wrong, the surest first, as JSON lines: those that
    the model is confident to be in another class. It must not have been trained on them."""
    output: FilePath | None = None
    """File for the results: JSON if it ends in `.json`, Markdown if in `.md`, otherwise plain
    text."""
    prompt_column: Annotated[str | Whole | None, _REFERENCES] = None
    """Column of prompts; generated continuations are compared with `reference_column`."""
    prediction_column: Annotated[str | Whole | None, _REFERENCES] = None
    """Column of previously generated texts."""
    reference_column: Annotated[str | Whole | None, _REFERENCES] = None
    """Column of reference texts; with it, `evaluate` compares texts."""
    reference_model: Annotated[NameOrPath | None, For("evaluate/preferences")] = None
    """Model that training on preferences began with; with it, `evaluate` reports how often
    `--model` prefers the chosen response of a pair, compared with it."""
    responses: Annotated[Whole | None, For("finetune/completion", _SEQ2SEQ)] = None
    """Number of held-out prompts or sources that the final model answers, for comparison with their
    responses or targets; by default none for a causal model, and at most 500 sources."""
    responses_every: Annotated[Whole, For(_SEQ2SEQ)] = 0
    """Compare generated texts with their targets after every n-th validation too, not only at the
    end; 0 does so only at the end."""
    worst: Annotated[
        Whole,
        For("evaluate/labels", "evaluate/tags", "evaluate/answers", "evaluate/preferences"),
    ] = 10
    """Number of the worst mistakes to show with their text."""
    tasks: Annotated[NamesOrPaths, For("evaluate/tasks")] = ()
    """Tasks of lm-evaluation-harness: names, or files and directories of task definitions."""
    task_limit: Annotated[Count | None, For("evaluate/tasks")] = None
    """Number of examples of each task; all by default."""


class MergeConfig(Section):
    """How domain experts become one model."""

    experts: dict[ExpertName, NameOrPath] = Field(default_factory=dict)
    """Runs or model directories of experts by domain, each trained with `data.expert`."""
    into: Literal["ensemble", "moe", "average"] = "ensemble"
    """`ensemble` reads text with all experts and weights them by how well they predict it; `moe` is
    one mixture-of-experts model that plain transformers loads; `average` is one dense model with
    the mean of all weights."""
    shared: str = "frequency"
    """Weights of a mixture of experts outside the feed-forward networks: `average`, or `frequency`,
    which weights the embedding of a token by how often each domain uses it, or the name of the
    expert to take them from. Weights that all experts share stay as they are."""
    router: Literal["fit", "random"] = "fit"
    """`fit` computes the routers of a mixture of experts from the statistics of the experts;
    `random` needs training on the mixture."""
    top_k: Count = 2
    """Number of experts of a mixture that a token is routed to."""
    without: Names = ()
    """Experts to take out of the model that `model.name_or_path` names."""
    only: str | None = None
    """Expert to take out of the model that `model.name_or_path` names, as a dense model."""


EXPORT_TYPES: Mapping[str, tuple[str, ...]] = {
    "gguf": ("f16", "f32", "bf16", "q8_0"),
    "onnx": ("f32", "int8"),
    "peft": ("f32",),
    "safetensors": ("bf16", "f32", "f16"),
}
"""The number types of each format that `export` writes; the first is the default."""


class ExportConfig(Section):
    """What `export` makes of a model."""

    format: Literal["auto", "gguf", "onnx", "peft", "safetensors"] = "auto"
    """`gguf` is a file for llama.cpp (extra `gguf`); the others are directories: `onnx` for ONNX
    Runtime (extra `onnx`), `peft` with the LoRA updates of a run for its base model, `safetensors`
    for transformers. `auto` is `gguf` for an output that ends in `.gguf`."""
    type: Literal["auto", "f32", "f16", "bf16", "q8_0", "int8"] = "auto"
    """Number type of the weights, by format, its default first: gguf `f16`, `f32`, `bf16` or
    `q8_0`; onnx `f32` or `int8`; safetensors `bf16`, `f32` or `f16`; peft `f32`."""
    output: FilePath | None = None
    """File or directory to write; it must not exist."""
    expert: str | None = None
    """Expert of a merged model or ensemble to export, as a dense model."""

    @property
    def written_format(self) -> str:
        """The format, or `auto` if the name of the output does not tell it."""
        if self.format == "auto" and str(self.output).lower().endswith(".gguf"):
            return "gguf"
        return self.format

    @property
    def written_type(self) -> str:
        """The number type of the weights."""
        return EXPORT_TYPES[self.written_format][0] if self.type == "auto" else self.type


class ServeConfig(Section):
    """What `serve` offers, where and to whom, and its limits."""

    models: ServedModels = ()
    """Models to serve: runs, model directories or hub names, each as it is or as `NAME=RUN`; by
    default the one that `model.name_or_path` names."""
    host: str = "127.0.0.1"
    """Address to listen on; the default one is reached from this machine only."""
    port: Port = 8000
    """Port to listen on; 0 chooses a free one."""
    api_key_file: FilePath | None = None
    """File with one API key per line; requests must send one of them as a bearer token."""
    max_body_bytes: Count = 1 << 20
    """Maximum number of bytes of a request."""
    max_texts: Count = 64
    """Maximum number of texts of a request: prompts times choices, or texts to classify."""
    max_new_tokens: Count = 4096
    """Maximum number of new tokens per text that a request may ask for; what it gets without asking
    is `generation.max_new_tokens`."""
    max_queue: Count = 64
    """Maximum number of requests that wait to begin; further ones are asked to come back later."""
    max_seconds: Positive = 300.0
    """Maximum number of seconds that a request may take."""
    grace: Rate = 30.0
    """Number of seconds that requests have to finish after a signal to stop."""
