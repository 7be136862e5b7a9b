"""The config schema: type, default, meaning and scope of every key.

The docstring of a field documents its key, and `For` names the commands and tasks that the key, or
its section, applies to. The key tables, the JSON schema, `llmkit keys` and error messages are
generated from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from llmkit.config.data import RESPONDING, TRAINING
from llmkit.config.data import CleanConfig as CleanConfig
from llmkit.config.data import DataConfig as DataConfig
from llmkit.config.inference import EvaluationConfig as EvaluationConfig
from llmkit.config.inference import ExportConfig as ExportConfig
from llmkit.config.inference import GenerationConfig as GenerationConfig
from llmkit.config.inference import MergeConfig
from llmkit.config.inference import PredictConfig as PredictConfig
from llmkit.config.inference import ServeConfig as ServeConfig
from llmkit.config.jobs import TASKS, For
from llmkit.config.types import (
    Auto,
    Count,
    FilePath,
    Form,
    Fraction,
    ModelSize,
    NameOrPath,
    PlanRevision,
    Positive,
    Rate,
    Section,
    Trackers,
    Whole,
    several,
)

WITH_MODEL = For(*(command for command in TASKS if command != "clean"))
NOT_PREDICT = For("pretrain", "finetune", "generate", "chat", "serve", "evaluate")
WITH_RUN = For("pretrain", "finetune", "merge")
"""The commands that write a run directory."""
SEQ2SEQ = "finetune/sequence_to_sequence"
LABELLING = (
    "finetune/classification",
    "finetune/token_classification",
    "finetune/question_answering",
)
NEW_MODEL = For("pretrain", *LABELLING, SEQ2SEQ)
DIVIDED = For(
    "predict", "generate", "serve",
    *(f"evaluate/{task}" for task in TASKS["evaluate"] if task not in ("tasks", "preferences")),
)  # fmt: skip
SEEDED = For("pretrain", "finetune", "merge", "generate", "chat", "evaluate")
MASKED = For("pretrain/masked")
SPANS = For("pretrain/span_corruption")
CLASSIFIER = For("finetune/classification", "finetune/token_classification")
SMOOTHED = For(*CLASSIFIER.jobs, SEQ2SEQ, "finetune/preference")
PREFERENCE = For("finetune/preference")
FREEZABLE = For("pretrain/causal", *LABELLING)


class LoraConfig(Section):
    """Low-rank updates that are trained beside the frozen weights of a pretrained model."""

    r: Count | None = None
    """Rank of the low-rank updates (Hu et al. 2021); by default all weights are trained."""
    alpha: Positive | Auto = "auto"
    """The updates are scaled by alpha / r; `auto` is twice the rank."""
    dropout: Fraction = 0.0
    """Dropout on the input of the updates."""
    target_modules: (
        Annotated[
            tuple[str, ...],
            BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
            Field(strict=False, min_length=1),
        ]
        | Auto
    ) = "auto"
    """Names of the layers to update, such as `query`; `auto` is every linear layer."""


class ModelConfig(Section):
    """The model: a pretrained one, or a new one of any transformers architecture."""

    name_or_path: Annotated[NameOrPath | None, WITH_MODEL] = None
    """Hub name, directory or run directory of a pretrained model; by default a new model is
    built."""
    revision: Annotated[str | None, WITH_MODEL] = None
    """Branch, tag or commit of a model on the hub."""
    architecture: Annotated[str, NEW_MODEL] = "auto"
    """Model type of transformers for a new model. `auto` is `qwen3` for a causal model, or `llama`
    if the text calls for a very small one, `modernbert` for a masked model, a classifier or a
    tagger, and `bart` for an encoder-decoder model."""
    size: Annotated[ModelSize | None, NEW_MODEL] = None
    """Number of parameters of a new model, embeddings included, within 10%: `tiny` (1M), `small`
    (10M), `base` (100M), or a number such as `30M`. By default the size suits the text."""
    config: Annotated[dict[str, Any], NEW_MODEL] = Field(default_factory=dict)
    """Settings of the transformers config class (`hidden_size`, `num_hidden_layers`, ...). For a
    pretrained model, `finetune` accepts its dropout settings."""
    tp_plan: Annotated[Auto | None, DIVIDED] = None
    """`auto` divides the model among all processes of a launcher, by transformers' tensor-parallel
    plan, and all compute each batch together; by default each process holds the whole model and
    does its share of the work."""
    code: Annotated[FilePath | None, WITH_MODEL] = None
    """Python file that registers your own architecture; runs only with `--allow-code`."""
    lora: Annotated[LoraConfig, For("finetune")] = LoraConfig()


class TokenizerConfig(Section):
    """The tokenizer: an existing one, or a byte-level BPE trained on the training text."""

    name_or_path: Annotated[NameOrPath | None, NOT_PREDICT] = None
    """Hub name or directory; by default the pretrained model's tokenizer, or a new one that is
    trained for a new model."""
    vocab_size: Annotated[Annotated[int, Field(strict=True, ge=257)] | Auto, NEW_MODEL] = "auto"
    """Vocabulary size of a new tokenizer; `auto` depends on the amount of text."""
    chat_template: Annotated[NameOrPath, RESPONDING] = "auto"
    """How conversations are formatted: a Jinja file, `plain` (prompt and response unchanged), or
    `auto`: the tokenizer's own template, otherwise one with headings."""


class TrainConfig(Section):
    """How the weights are trained."""

    objective: Literal[
        "auto", "causal", "masked", "classification", "token_classification",
        "question_answering", "completion", "sequence_to_sequence", "preference",
        "span_corruption",
    ] = "auto"  # fmt: skip
    """What to learn. `pretrain`: each token from those before it (`causal`), masked tokens from
    those around them (`masked`), or hidden spans with an encoder-decoder model
    (`span_corruption`); `auto` follows the model. `finetune`: a label (`classification`,
    the default), a tag for each word (`token_classification`), the span of a context that answers
    a question (`question_answering`), the response to a prompt (`completion`), a target text from
    a source text, such as a translation or a summary (`sequence_to_sequence`), or which of two
    responses to prefer (`preference`)."""
    mask_probability: Annotated[Annotated[float, Field(gt=0, lt=1)] | Auto, MASKED] = "auto"
    """Fraction of tokens to mask and predict; `auto` is 0.15, and 0.3 for models after BERT, such
    as ModernBERT."""
    whole_word_masking: Annotated[bool, MASKED] = False
    """Mask whole words instead of tokens."""
    next_sentence: Annotated[bool, MASKED] = False
    """Also predict whether the second of two segments continues the first, as BERT does; needs an
    architecture with such a head, by default `bert`."""
    noise_density: Annotated[Annotated[float, Field(gt=0, lt=1)], SPANS] = 0.15
    """Fraction of the tokens that span corruption hides."""
    mean_span_length: Annotated[Annotated[float, Field(ge=1)], SPANS] = 3.0
    """Mean number of tokens of a hidden span."""
    max_steps: Whole | None = None
    """Stop after this many optimizer steps."""
    num_train_epochs: Positive | None = None
    """Stop after this many passes over the training data; may be a fraction. For a mixture, one
    pass is as many examples as all domains with a weight contain."""
    max_minutes: Positive | None = None
    """Stop after this many minutes in total; the schedule is planned to end with them. Without
    another limit, a new causal model stops after four epochs."""
    plan: tuple[PlanRevision, ...] = Field(default=(), strict=False)
    """Recorded plan of a time-limited run, a list of `[step, total steps]`; following it instead of
    the clock reproduces the weights."""
    global_batch_size: Count | Auto = "auto"
    """Sequences per optimizer step over all processes."""
    micro_batch_size: Count | Auto = "auto"
    """Sequences that one device computes at once; changes no result."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """`muon` uses Muon for hidden matrices and AdamW for the rest; `adamw` uses AdamW for all."""
    learning_rate: Positive | Auto = "auto"
    """Peak learning rate of the schedule."""
    lr_scheduler_type: Literal["auto", "constant", "linear", "cosine", "warmup_stable_decay"] = (
        "auto"
    )
    """Schedule of the learning rate after the warm-up."""
    warmup_steps: Whole | Fraction | Auto = "auto"
    """Steps of linear warm-up; a number below 1 is a fraction of all steps."""
    weight_decay: Rate | Auto = "auto"
    """Decoupled weight decay of matrices; biases and norms get none. `auto` is 0.01 to finetune,
    0.1 to pretrain, and up to 2 as new weights see the same text more often."""
    adam_beta1: Fraction = 0.9
    """Decay rate of AdamW's first moment."""
    adam_beta2: Fraction | Auto = "auto"
    """Decay rate of AdamW's second moment; `auto` is 0.95 to pretrain and 0.999 to finetune."""
    adam_epsilon: Rate = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Positive | None = 1.0
    """Clip gradients to this norm; `null` does not clip."""
    max_nonfinite_steps: Count = 5
    """Stop after this many consecutive steps with a NaN or infinite loss or gradient."""
    loss_spike: Literal["warn", "skip", "stop"] = "warn"
    """What to do when a step's loss is more than six standard deviations above the previous 128:
    `warn`, `skip` the update, or `stop`."""
    ddp_timeout: Count = 600
    """Seconds that a process waits for a rank that does not respond before the run fails; a rank
    that ends is noticed at once."""
    shard: bool | Auto = "auto"
    """Whether each process holds only a part of every weight, its gradient and its moments (FSDP);
    `auto` does so if they need more memory than a device has. Changes no result but the last
    digits."""
    shard_size: Count | None = None
    """Number of processes that share one copy of the weights; it must divide their number, and the
    copies are trained alike (HSDP). By default all processes share one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward and backward pass; weights are always kept in fp32. On a GPU, fp32
    uses TF32 matrix products for training, and true fp32 for validation."""
    compile: bool | Auto = "auto"
    """Whether to use torch.compile; `auto` uses it if it saves more time than it takes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    logging_steps: Count | Auto = "auto"
    """Number of steps between reports of the training loss."""
    eval_steps: Count | Auto = "auto"
    """Number of steps between validations."""
    max_eval_samples: Count | Auto = "auto"
    """Number of validation examples to use during training, sampled once; `auto` is all, or as many
    as take a tenth of `max_minutes`."""
    save_steps: Count | Auto = "auto"
    """Number of steps between checkpoints."""
    save_total_limit: Annotated[int, Field(strict=True, ge=2)] = 2
    """Number of newest checkpoints to keep; the best one is kept as well."""
    metric_for_best_model: str = "auto"
    """Metric used to choose the best checkpoint; `loss/novels` is that of one domain of a mixture.
    `auto` is `f1_macro` for a classifier, `f1` for a tagger of entities, `accuracy` for one with a
    plain scheme, and `loss` otherwise."""
    load_best_model_at_end: bool | Auto = "auto"
    """Whether `final/` is the best checkpoint instead of the last; `auto` is `true` for `finetune`,
    and for `pretrain` with more than one epoch."""
    early_stopping_patience: Count | None = None
    """Stop after this many consecutive validations without a new best."""
    class_weights: Annotated[Literal["none", "balanced"], CLASSIFIER] = "none"
    """`balanced` weights each class by the inverse of its frequency."""
    label_smoothing_factor: Annotated[Fraction, SMOOTHED] = 0.0
    """Fraction of each label, or of each target token, that is spread over all of them; for
    preferences, the probability that a pair is the wrong way round, below 0.5 (conservative
    DPO)."""
    preference_loss: Annotated[Literal["dpo", "ipo"], PREFERENCE] = "dpo"
    """`dpo` raises the chosen response over the rejected one (Rafailov et al. 2023); `ipo` aims at
    a fixed distance per token, and overfits less (Azar et al. 2024)."""
    beta: Annotated[Positive, PREFERENCE] = 0.1
    """How strongly preferences keep the model near the reference, the model that training begins
    with: a larger value keeps it nearer."""
    sft_weight: Annotated[Rate, PREFERENCE] = 0.0
    """Weight of the mean loss per token of the chosen response, added to that of the preference:
    above 0, chosen responses do not become unlikely."""
    freeze: Annotated[Literal["none", "embeddings", "trunk", "body"], FREEZABLE] = "none"
    """Weights of a pretrained model to freeze: its `embeddings`; to pretrain, the `trunk`,
    everything but the feed-forward networks; to finetune, the `body`, everything but the
    head."""
    layer_decay: Annotated[Annotated[float, Field(gt=0, le=1)], CLASSIFIER] = 1.0
    """Factor on the learning rate from each layer to the one below."""
    head_scale: Annotated[Positive | Auto, CLASSIFIER] = "auto"
    """Factor on the learning rate of the head of a classifier or tagger; `auto` is 5 for a new head
    on a fully trained pretrained model, and 1 otherwise."""


class Config(Section):
    """The whole config of a command."""

    output_dir: Annotated[FilePath | None, WITH_RUN] = None
    """Run directory; by default `runs/`, the command, the name of the data and a number. The same
    command with the same config finds its directory again."""
    seed: Annotated[Whole, SEEDED] = 0
    """Seed of weights, order of examples, dropout and sampling."""
    resume: Annotated[NameOrPath, TRAINING] = "auto"
    """`auto` resumes from the newest intact checkpoint, `never` starts a new run; a path resumes
    from that checkpoint."""
    report_to: Annotated[Trackers, TRAINING] = ()
    """Trackers to log to besides the run directory."""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    train: Annotated[TrainConfig, TRAINING] = TrainConfig()
    generation: Annotated[
        GenerationConfig,
        For(
            "generate/continuation",
            "generate/sequence_to_sequence",
            "chat",
            "serve",
            "pretrain",
            "finetune/completion",
            SEQ2SEQ,
            "finetune/preference",
            "evaluate/references",
        ),
    ] = GenerationConfig()
    predict: Annotated[PredictConfig, For("predict")] = PredictConfig()
    evaluation: Annotated[EvaluationConfig, For("evaluate")] = EvaluationConfig()
    merge: Annotated[MergeConfig, For("merge")] = MergeConfig()
    export: Annotated[ExportConfig, For("export")] = ExportConfig()
    serve: Annotated[ServeConfig, For("serve")] = ServeConfig()
    clean: Annotated[CleanConfig, For("clean")] = CleanConfig()

    _own: dict[tuple[str, ...], Form] = PrivateAttr(default_factory=dict)
    """The paths of values that were given for this command alone, with their form."""
    _arguments: tuple[str, ...] = PrivateAttr(())

    @property
    def command_line(self) -> tuple[str, ...]:
        """The arguments of the command line that repeats the command."""
        return self._arguments

    @property
    def sampling_seed(self) -> int:
        """The seed that texts are written with: that of `generation`, else the run's."""
        return self.seed if self.generation.seed is None else self.generation.seed
