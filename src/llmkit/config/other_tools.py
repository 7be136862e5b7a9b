"""The keys of other tools, and what to write instead.

From transformers' TrainingArguments with run_clm and run_classification, nanoGPT and nanochat,
LitGPT, Axolotl, LLaMA-Factory and TRL. Names are compared in lower case with `_` for `-`.
"""

from __future__ import annotations

_LENGTHS = (
    "max_seq_length max_seq_len seq_len seq_length sequence_len sequence_length max_len cutoff_len "
    "context_length context_size context_len n_ctx max_model_len model_max_length "
    "max_source_length max_input_length padding_max_length train_max_length"
).split()
_NEW_TOKENS = (
    "max_tokens max_gen_toks max_gen_len max_completion_tokens max_output_tokens num_tokens "
    "n_predict num_predict"
).split()

RENAMED = {
    # model and tokenizer
    "model_name_or_path": "model.name_or_path",
    "model_name": "model.name_or_path",
    "base_model": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "initial_checkpoint_dir": "model.name_or_path",
    "checkpoint_dir": "model.name_or_path",
    "init_from": "model.name_or_path",
    "model_revision": "model.revision",
    "model_type": "model.architecture",
    "config_overrides": "model.config",
    **dict.fromkeys(("model_size", "n_params", "num_parameters"), "model.size"),
    "model_config": "model.config",
    "lora_r": "model.lora.r",
    "lora_rank": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.target_modules",
    "lora_target": "model.lora.target_modules",
    "tokenizer_name": "tokenizer.name_or_path",
    "tokenizer_name_or_path": "tokenizer.name_or_path",
    "tokenizer_dir": "tokenizer.name_or_path",
    "n_layer": "model.config.num_hidden_layers",
    "n_layers": "model.config.num_hidden_layers",
    "num_layers": "model.config.num_hidden_layers",
    "depth": "model.config.num_hidden_layers",
    "num_hidden_layers": "model.config.num_hidden_layers",
    "n_head": "model.config.num_attention_heads",
    "n_heads": "model.config.num_attention_heads",
    "num_heads": "model.config.num_attention_heads",
    "num_attention_heads": "model.config.num_attention_heads",
    "n_query_groups": "model.config.num_key_value_heads",
    "num_key_value_heads": "model.config.num_key_value_heads",
    "n_embd": "model.config.hidden_size",
    "d_model": "model.config.hidden_size",
    "hidden_size": "model.config.hidden_size",
    "intermediate_size": "model.config.intermediate_size",
    "max_position_embeddings": "model.config.max_position_embeddings",
    "tie_word_embeddings": "model.config.tie_word_embeddings",
    "rope_theta": "model.config.rope_theta",
    "attention_dropout": "model.config.attention_dropout",
    # data
    "train_file": "data.train_files",
    "train_data": "data.train_files",
    "train_data_path": "data.train_files",
    "validation_file": "data.validation_files",
    "eval_file": "data.validation_files",
    "val_file": "data.validation_files",
    "val_data_path": "data.validation_files",
    "test_file": "data.test_files",
    "val_set_size": "data.validation_fraction",
    "val_size": "data.validation_fraction",
    "val_fraction": "data.validation_fraction",
    "text_column_name": "data.text_column",
    "text_column_names": "data.text_column",
    "text_field": "data.text_column",
    "dataset_text_field": "data.text_column",
    "label_column_name": "data.label_column",
    "label_col": "data.label_column",
    "source_prefix": "data.prefix",
    "sep": "data.delimiter",
    # lengths
    **dict.fromkeys(_LENGTHS, "data.max_length"),
    # duration
    "max_iters": "train.max_steps",
    "max_train_steps": "train.max_steps",
    "num_iterations": "train.max_steps",
    "num_steps": "train.max_steps",
    "total_steps": "train.max_steps",
    "steps": "train.max_steps",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "n_epochs": "train.num_train_epochs",
    "max_epochs": "train.num_train_epochs",
    # optimizer and schedule
    "lr": "train.learning_rate",
    "max_lr": "train.learning_rate",
    "base_lr": "train.learning_rate",
    "optim": "train.optimizer",
    "optimizer_name": "train.optimizer",
    "lr_scheduler": "train.lr_scheduler_type",
    "scheduler": "train.lr_scheduler_type",
    "lr_schedule": "train.lr_scheduler_type",
    "scheduler_type": "train.lr_scheduler_type",
    "warmup": "train.warmup_steps",
    "warmup_iters": "train.warmup_steps",
    "warmup_ratio": "train.warmup_steps",
    "num_warmup_steps": "train.warmup_steps",
    "lr_warmup_steps": "train.warmup_steps",
    "lr_warmup_fraction": "train.warmup_steps",
    "beta1": "train.adam_beta1",
    "beta2": "train.adam_beta2",
    "label_smoothing": "train.label_smoothing_factor",
    **dict.fromkeys(("rpo_alpha", "pref_ftx", "sft_loss_weight"), "train.sft_weight"),
    **dict.fromkeys(("loss_type", "pref_loss", "dpo_loss"), "train.preference_loss"),
    **dict.fromkeys(("dpo_beta", "pref_beta", "rl_beta"), "train.beta"),
    "layerwise_lr_decay": "train.layer_decay",
    "layer_wise_lr_decay": "train.layer_decay",
    "patience": "train.early_stopping_patience",
    "eps": "train.adam_epsilon",
    "epsilon": "train.adam_epsilon",
    "wd": "train.weight_decay",
    "grad_clip": "train.max_grad_norm",
    "clip_grad_norm": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "gradient_clip_val": "train.max_grad_norm",
    "max_norm": "train.max_grad_norm",
    # precision, logging and checkpoints
    "dtype": "train.precision",
    "torch_dtype": "train.precision",
    "mixed_precision": "train.precision",
    "torch_compile": "train.compile",
    "use_gradient_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "log_interval": "train.logging_steps",
    "log_every": "train.logging_steps",
    "log_every_n_steps": "train.logging_steps",
    "eval_interval": "train.eval_steps",
    "eval_every": "train.eval_steps",
    "save_interval": "train.save_steps",
    "save_every": "train.save_steps",
    "checkpointing_steps": "train.save_steps",
    "keep_last_k": "train.save_total_limit",
    "keep_last_n_checkpoints": "train.save_total_limit",
    "auto_resume": "resume",
    "resume_from": "resume",
    "resume_from_checkpoint": "resume",
    **dict.fromkeys(
        (
            "out_dir",
            "out",
            "output_path",
            "outfile",
            "out_file",
            "save_dir",
            "run_dir",
            "save_path",
        ),
        "output_dir",
    ),
    "logger_name": "report_to",
    "loggers": "report_to",
    # generation
    **dict.fromkeys(_NEW_TOKENS, "generation.max_new_tokens"),
    **dict.fromkeys(
        ("num_samples", "n", "num_return_seqs", "n_samples", "best_of"),
        "generation.num_return_sequences",
    ),
    "min_length": "generation.min_new_tokens",
    "temp": "generation.temperature",
    "topk": "generation.top_k",
    "topp": "generation.top_p",
    "typical": "generation.typical_p",
    "repeat_penalty": "generation.repetition_penalty",
    "beam_size": "generation.num_beams",
    "stop_strings": "generation.stop",
    "stop_sequences": "generation.stop",
    "bad_words_ids": "generation.bad_words",
    "prompt": "generation.prompts",
    "prompt_file": "generation.prompts_file",
    "system_prompt": "generation.system",
    "system_message": "generation.system",
    "logprobs": "generation.explain",
}
"""Their key: our key."""

OTHER_DATA = (
    "dataset datasets dataset_name data_path text texts csv files file data_file data_files "
    "input_file input inputs in_file"
).split()
"""Their keys for the data of any command."""

DATA_KEYS = {
    "pretrain": "data.train_files",
    "finetune": "data.train_files",
    "predict": "data.test_files",
    "evaluate": "data.test_files",
    "export": "data.test_files",
    "generate": "generation.prompts_file",
}
"""Our key for that data, by command."""

_PRECISION = (
    "train.precision",
    "generation.precision",
    "evaluation.precision",
    "predict.precision",
)

_FLOATS = {
    **dict.fromkeys(("bf16-mixed", "bf16-true", "bfloat16", "bf16_mixed", "fp16"), "bf16"),
    **dict.fromkeys(("float16", "16-mixed", "half", "16"), "bf16"),
    **dict.fromkeys(("float32", "32-true", "32", "no", "full", "fp32-true"), "fp32"),
}

VALUES: dict[str, dict[str, str]] = {
    "train.lr_scheduler_type": {
        "wsd": "warmup_stable_decay",
        "trapezoid": "warmup_stable_decay",
        "trapezoidal": "warmup_stable_decay",
        "constant_with_warmup": "constant",
        "cosine_with_min_lr": "cosine",
    },
    **dict.fromkeys(_PRECISION, _FLOATS),
    "train.optimizer": dict.fromkeys(
        ("adam", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_8bit", "adamw_bnb_8bit"),
        "adamw",
    ),
    "train.preference_loss": {"sigmoid": "dpo"},
    "resume": {"true": "auto", "false": "never"},
    "report_to": {"none": "[]", "all": "[tensorboard, wandb]"},
    "model.name_or_path": {"scratch": "null"},
}
"""Their value: our value, by our key."""

SWITCHES = {
    "bf16": {"true": "train.precision: bf16", "false": "train.precision: fp32"},
    "fp16": {"true": "train.precision: bf16", "false": "train.precision: fp32"},
    "fp32": {"true": "train.precision: fp32", "false": "train.precision: auto"},
    "bf16_full_eval": {"true": "train.precision: bf16", "false": "train.precision: auto"},
    "from_scratch": {"true": "model.name_or_path: null"},
    "decay_lr": {"false": "train.lr_scheduler_type: constant"},
    "load_in_8bit": {"true": "generation.weights: int8", "false": "generation.weights: full"},
    "use_lora": {"true": "model.lora.r: 8", "false": "model.lora.r: null"},
    "sample": {"true": "generation.do_sample: true", "false": "generation.do_sample: false"},
    "greedy": {"true": "generation.do_sample: false", "false": "generation.do_sample: true"},
    "sample_packing": {"true": "data.isolate_documents: true"},
    "packing": {"true": "data.isolate_documents: true"},
    "neat_packing": {"true": "data.isolate_documents: true"},
    "wandb_log": {"true": "report_to: wandb", "false": "report_to: []"},
    "use_wandb": {"true": "report_to: wandb", "false": "report_to: []"},
}
"""Their switch: our key and value."""

_ONE_THING = "remove it: the command decides that"
_ON_WITH_STEPS = "remove it: a number of steps is enough, such as `{}: 100`"
_DEVICE = "remove it: llmkit uses all visible devices; CUDA_VISIBLE_DEVICES selects them"
_LAUNCH = "remove it: start with `torchrun` or `accelerate launch -m llmkit`, which set it"
_ADAPTER = "remove it: `model.lora.r: 8` trains low-rank updates only"
_RESPONSES = "remove it: `train.objective: completion` trains on responses only"
_REFERENCE = "remove it: the reference is the model that training begins with, measured once"
_QUANTIZED = "remove it: weights are trained in fp32"
_WANDB = "remove it: write `report_to: wandb` and set WANDB_PROJECT or WANDB_NAME"
ABSENT = {
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "do_test", "stage", "eval_only"), _ONE_THING
    ),
    "evaluation_strategy": _ON_WITH_STEPS.format("train.eval_steps"),
    "eval_strategy": _ON_WITH_STEPS.format("train.eval_steps"),
    "save_strategy": _ON_WITH_STEPS.format("train.save_steps"),
    "logging_strategy": _ON_WITH_STEPS.format("train.logging_steps"),
    "evals_per_epoch": _ON_WITH_STEPS.format("train.eval_steps"),
    "saves_per_epoch": _ON_WITH_STEPS.format("train.save_steps"),
    **dict.fromkeys(
        ("no_cuda", "use_cpu", "device", "device_map", "devices", "accelerator"), _DEVICE
    ),
    **dict.fromkeys(
        ("local_rank", "num_nodes", "num_processes", "nproc_per_node", "backend"), _LAUNCH
    ),
    **dict.fromkeys(("ddp", "fsdp", "deepspeed", "strategy", "ddp_backend"), _LAUNCH),
    **dict.fromkeys(("adapter", "finetuning_type", "use_peft", "peft_type"), _ADAPTER),
    **dict.fromkeys(("load_in_4bit", "quantization_config"), _QUANTIZED),
    **dict.fromkeys(("wandb_project", "wandb_run_name", "wandb_name", "wandb_entity"), _WANDB),
    **dict.fromkeys(("ref_model", "precompute_ref_log_probs", "sync_ref_model"), _REFERENCE),
    "trust_remote_code": "remove it: llmkit never runs code that comes with a model",
    "overwrite_output_dir": "remove it: `resume: never` starts a new run; nothing is overwritten",
    "overwrite_cache": "remove it: the cache is keyed by content and never stale",
    "preprocessing_num_workers": "remove it: all cores are used",
    "dataloader_num_workers": "remove it: blocks come from a memory map and need no workers",
    "num_workers": "remove it: blocks come from a memory map and need no workers",
    "per_device_eval_batch_size": "remove it: evaluation picks a batch size that fits the memory",
    "eval_batch_size": "remove it: evaluation picks a batch size that fits the memory",
    "eval_iters": "remove it: validation uses all held-out data",
    "eval_accumulation_steps": "remove it: evaluation picks a batch size that fits the memory",
    "auto_find_batch_size": "remove it: `train.micro_batch_size: auto` is the default",
    "greater_is_better": "remove it: it follows from `train.metric_for_best_model`",
    "validation_split_percentage": "write `data.validation_fraction`, a share such as 0.05",
    "min_lr": "remove it: the schedule ends at zero",
    "lr_decay_iters": "remove it: the schedule ends with the run",
    "lr_scheduler_kwargs": "remove it: the schedule needs only its type",
    "data_seed": "remove it: `seed` also orders the data",
    "push_to_hub": "remove it: llmkit uploads nothing; `hf upload NAME RUN/final` does",
    "hub_model_id": "remove it: llmkit uploads nothing; `hf upload NAME RUN/final` does",
    "logging_dir": "remove it: logs are written to the run directory",
    "cache_dir": "remove it: HF_HOME and LLMKIT_CACHE set the cache directories",
    "token": "remove it: HF_TOKEN or `hf auth login` holds it",
    "use_auth_token": "remove it: HF_TOKEN or `hf auth login` holds it",
    "use_fast_tokenizer": "remove it: only fast tokenizers are used",
    "tf32": "remove it: fp32 uses TF32 on GPUs that support it, and bf16 is faster",
    "flash_attention": "remove it: llmkit uses the fastest attention of torch",
    "attn_implementation": "remove it: llmkit uses the fastest attention of torch",
    "streaming": "remove it: text is always read as a stream",
    "always_save_checkpoint": "remove it: checkpoints are always saved",
    "max_time": "write `train.max_minutes`, in minutes",
    "max_tokens_seen": "write `train.max_steps`, tokens divided by those of one step",
    "max_train_samples": "write `train.max_steps` to train on less",
    "plot_loss": "remove it: every run draws `loss.png`",
    "template": "write `tokenizer.chat_template`: a Jinja file, `plain`, or `auto`",
    **dict.fromkeys(
        ("train_on_inputs", "train_on_prompt", "mask_prompt", "completion_only_loss"), _RESPONSES
    ),
}
"""Their keys without a counterpart, and why none is needed."""

ACCUMULATION = (
    "gradient_accumulation_steps",
    "gradient_accumulation_iters",
    "accumulate_grad_batches",
    "grad_accum_steps",
)
"""Their keys for gradient accumulation."""

PER_DEVICE = (
    "per_device_train_batch_size",
    "per_gpu_train_batch_size",
    "per_device_batch_size",
    "device_batch_size",
    "train_batch_size",
    "batch_size",
    "micro_batch_size",
)
"""Their keys for the sequences that one device computes at once."""

_OUTPUT = (
    "output_dir",
    "predict.output",
    "evaluation.output",
    "generation.output_file",
    "export.output",
)

COUNTERPARTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_PRECISION, _PRECISION),
    **dict.fromkeys(_OUTPUT, _OUTPUT),
    "data.max_length": ("data.block_size", "evaluation.window", "generation.max_new_tokens"),
    "data.block_size": ("data.max_length", "evaluation.window", "generation.max_new_tokens"),
    "evaluation.window": ("data.max_length", "data.block_size"),
    "data.train_files": ("data.test_files", "generation.prompts_file"),
    "data.validation_files": ("data.test_files", "generation.prompts_file"),
    "data.test_files": ("generation.prompts_file",),
    "generation.prompts_file": ("data.test_files",),
    "train.micro_batch_size": ("generation.micro_batch_size", "evaluation.batch_tokens"),
    "train.global_batch_size": ("generation.micro_batch_size", "evaluation.batch_tokens"),
    "generation.micro_batch_size": ("train.micro_batch_size", "evaluation.batch_tokens"),
    "data.text_column": ("data.prompt_column", "evaluation.prompt_column"),
    "data.prompt_column": ("evaluation.prompt_column", "data.text_column"),
    "evaluation.prompt_column": ("data.prompt_column", "data.text_column"),
    "data.label_column": ("data.response_column", "evaluation.reference_column"),
    "data.response_column": ("evaluation.reference_column", "data.label_column"),
    "evaluation.reference_column": ("data.response_column", "data.label_column"),
}
"""Keys with the same meaning for other commands and tasks."""

IN_OTHER_UNITS = {"evaluation.batch_tokens"}
"""Counterparts in another unit: tokens instead of sequences."""

CHOOSES = {
    "pretrain/causal": ("train.objective", "causal"),
    "pretrain/masked": ("train.objective", "masked"),
    "pretrain/span_corruption": ("train.objective", "span_corruption"),
    "finetune/classification": ("train.objective", "classification"),
    "finetune/token_classification": ("train.objective", "token_classification"),
    "finetune/question_answering": ("train.objective", "question_answering"),
    "finetune/completion": ("train.objective", "completion"),
    "finetune/sequence_to_sequence": ("train.objective", "sequence_to_sequence"),
    "finetune/preference": ("train.objective", "preference"),
    "evaluate/references": ("evaluation.reference_column", "COLUMN"),
    "evaluate/preferences": ("evaluation.reference_model", "MODEL"),
    "evaluate/tasks": ("evaluation.tasks", "TASK"),
}
"""The key and value that select a task of a command."""
