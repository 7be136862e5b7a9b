"""The keys of `generation`: how text is written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.types import Auto, Count, Files, Finite, Positive, Section, Share, Texts, Whole


class GenerationConfig(Section):
    """How text is sampled: during training, by `generate` and by `chat`.

    What changes the probabilities is applied in the order of the keys, from `repetition_penalty`
    to `typical_p`, which is transformers' own; a form (`choices`, `regex`, `json_schema`) comes
    before the temperature.
    """

    max_new_tokens: Count = 64
    """Most tokens of one continuation."""
    min_new_tokens: Whole = 0
    """Fewest tokens before the text may end."""
    do_sample: bool = True
    """Draw tokens by their probability; `false` always takes the likeliest."""
    repetition_penalty: Positive = 1.0
    """Above 1, tokens that stand in the prompt or the text become less likely."""
    frequency_penalty: Finite = 0.0
    """Taken off a token's logit for each time that it was generated."""
    presence_penalty: Finite = 0.0
    """Taken off the logit of a token that was generated at least once."""
    no_repeat_ngram_size: Whole = 0
    """No run of this many tokens comes twice; 0 allows all."""
    bad_words: Texts = ()
    """Strings that are never written, whatever the tokens that spell them."""
    temperature: Positive = 0.8
    """Below 1 sharper, above 1 flatter probabilities."""
    top_k: Whole = 50
    """Draw from this many likeliest tokens only; 0 from all."""
    top_p: Share = 1.0
    """Draw from the likeliest tokens that hold this probability together."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Draw from tokens with at least this share of the likeliest one's probability."""
    typical_p: Share = 1.0
    """Draw from the tokens nearest to the expected surprise that hold this probability together."""
    num_return_sequences: Count = 1
    """Continuations per prompt."""
    num_beams: Count = 1
    """Above 1: beam search through transformers, which draws nothing."""
    stop: Texts = ()
    """The text ends before the first of these strings."""
    choices: Texts = ()
    """The text is one of these strings."""
    regex: str | None = None
    """The text matches this regular expression; needs `llmkit[grammar]`."""
    json_schema: str | None = None
    """File of a JSON schema that the text fits; needs `llmkit[grammar]`."""
    seed: Whole | None = None
    """Seed of sampling; the run's `seed` if not given."""
    prompts: Files = ()
    """Texts to continue."""
    prompts_file: str | None = None
    """File of prompts: a line, a JSONL object or a row of `data.text_column` (`prompt`) each."""
    output_file: str | None = None
    """File of the results as JSON lines; the same command goes on where it stopped."""
    chat: bool = False
    """Each prompt is what the user says in the tokenizer's chat template."""
    system: str | None = None
    """The system message of a chat."""
    split_special_tokens: bool = True
    """Read the names of control tokens in a prompt, such as `</s>`, as text; with `false`
    they are the tokens. A chat template places its own either way."""
    truncate_prompt: bool = False
    """Cut prompts that are longer than the context from the left instead of refusing them."""
    explain: Whole = 0
    """Show this many of the likeliest tokens at each step."""
    micro_batch_size: Count | Auto = "auto"
    """Maximum number of texts that one device writes at once; in fp32 it changes no text."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto` is bf16 on an accelerator and fp32 on a CPU. In fp32 a text of a seed is
    the same alone and in any batch; in bf16 it may differ."""
    weights: Literal["full", "int8"] = "full"
    """`int8` keeps one byte per weight: faster and a little less exact; on a CPU only."""
