"""`llmkit chat`: a conversation with a language model, line by line; base models continue text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmkit.config import yaml12
from llmkit.config.schema import Config, GenerationConfig
from llmkit.data.readers.files import Sources
from llmkit.errors import ConfigError, LlmkitError, WriteError
from llmkit.inference import generate, prompts, requests
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.inference.sequence import Sequence
from llmkit.models.pretrained import Pretrained
from llmkit.reporting import samples
from llmkit.reporting.console import Console
from llmkit.storage import atomic
from llmkit.storage.strict_json import json_text

_HELP = """\
/reset            begin a new conversation or text
/set KEY VALUE    change a setting of `generation`: /set temperature 0.5
/save FILE        write the conversation as JSON, or the text
/quit             quit, as Ctrl-D does
/help             show this
Ctrl-C            stop the response"""

_FIXED = {"num_return_sequences", "num_beams", "prompts", "prompts_file", "output_file", "chat"}
_FIXED |= {"precision", "weights", "micro_batch_size"}
"""Keys that `/set` cannot change, in a conversation or at all."""


@dataclass
class _Conversation:
    """The messages so far, and the settings for the next response."""

    config: Config
    engine: Engine
    sampler: Sampler
    messages: list[dict[str, str]] = field(default_factory=list)
    saved: set[Path] = field(default_factory=set)

    @property
    def is_chat(self) -> bool:
        """Whether the model answers messages; a base model continues one running text."""
        return self.config.generation.chat

    @property
    def text(self) -> str:
        """The running text: each line that was typed starts a line, as on the terminal."""
        return "".join(
            "\n" * (number > 0 and each["role"] == "user" and each["content"] != "")
            + each["content"]
            for number, each in enumerate(self.messages)
        )

    def reset(self) -> None:
        """Removes all messages but the system message."""
        system = self.config.generation.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def prompt(self) -> Prompt:
        """The encoded conversation; raises DataError if it is too long."""
        settings = self.config.generation
        if not self.is_chat:
            return self._continuation()
        ids = prompts.chat_ids(self.messages, self.engine.tokenizer)
        asked = requests.PromptRequest(self.messages[-1]["content"], "the conversation")
        return prompts.fitted(
            asked, ids, self.engine.model.config, settings, self.config.sampling_seed
        )

    def _continuation(self) -> Prompt:
        tokenizer, config = self.engine.tokenizer, self.engine.model.config
        asked = requests.PromptRequest(self.text, "the text")
        settings = self.config.generation.changed(truncate_prompt=True)
        (prompt,) = prompts.encode_prompts(
            [asked], tokenizer, config, settings, self.config.sampling_seed
        )
        return prompt

    def use(self, settings: GenerationConfig) -> None:
        """Uses other settings from now on; raises ConfigError if they are invalid."""
        config = self.config.changed(generation=settings)
        requests.check_generation_settings(config)
        self.sampler = self.engine.sampler(settings)
        self.config = config


def run(config: Config, sources: Sources, console: Console) -> None:
    """Responds to each line of stdin until it ends; `/help` lists the commands."""
    config, model = _prepare(config)
    with console.loading_model():
        engine = generate.engine(config, model)
    talk = _Conversation(config, engine, engine.sampler(config.generation))
    talk.reset()
    console.say(_greeting(model.name, talk.is_chat))
    for line in _lines():
        try:
            if line.strip() in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                _run_command(line, talk, console)
            elif line.strip() or (talk.messages and not talk.is_chat):
                _respond(line, talk, console)
        except LlmkitError as fault:
            console.say(str(fault))


def _greeting(model: str, is_chat: bool) -> str:
    commands = "/help lists the commands; Ctrl-D quits"
    if is_chat:
        return commands
    return (
        f"{model} is a base model: it continues your text and does not answer. An empty line "
        f"continues it further. {commands}\nto teach it to answer: llmkit finetune "
        f"train.objective=completion --model {model} --csv chats.jsonl"
    )


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks settings, model config and chat template, without loading weights."""
    config, model = _prepare(config)
    return {
        "command": "chat",
        "model": model.config.model_type,
        "answers": config.generation.chat,
        "context": prompts.context(model.config),
    }


def _prepare(config: Config) -> tuple[Config, Pretrained]:
    """The config of a conversation, and its model without weights. `generation.chat` says whether
    the model has a chat template, which is checked."""
    model = generate.open_language_model(config)
    chat = bool(model.tokenizer.chat_template)
    if not chat and config.generation.system is not None:
        raise ConfigError(
            f"{model.name} has no chat template, so it reads no system message",
            where="generation.system",
            next="type it as text, or use a model that was tuned to chat",
        )
    settings = config.generation.changed(chat=chat, num_return_sequences=1, num_beams=1)
    config = config.changed(generation=settings)
    requests.check_generation_settings(config)
    if chat:
        prompts.chat_ids([{"role": "user", "content": "?"}], model.tokenizer)
    generate.constraint(config, model)
    return config, model


def _lines() -> Iterator[str]:
    """The lines of stdin; on a terminal with a prompt, line editing and history."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    import readline  # noqa: F401 (enables line editing in `input`)

    while True:
        try:
            yield input("> ")
        except EOFError:
            samples.put("\n")
            return
        except KeyboardInterrupt:
            samples.put("\n")


def _respond(text: str, talk: _Conversation, console: Console) -> None:
    """Streams the response; a failed one leaves the conversation unchanged."""
    talk.messages.append({"role": "user", "content": text})
    response: list[str] = []

    def stream(_: Sequence, new: str) -> None:
        response.append(new)
        if not console.json:
            samples.put(new)

    try:
        prompt = talk.prompt()
        if prompt.cut:
            console.warn(f"the first {prompt.cut} tokens no longer fit the context")
        (sample,) = generate.generate_samples(talk.engine, [prompt], talk.sampler, on_text=stream)
        record = sample.record()
        samples.put(json_text(record) if console.json else "")
        samples.put("\n" + ("" if console.json else samples.steps_table(record)))
    except KeyboardInterrupt:
        samples.put("\n")
    except LlmkitError:
        talk.messages.pop()
        raise
    talk.messages.append({"role": "assistant", "content": "".join(response)})


def _run_command(line: str, talk: _Conversation, console: Console) -> None:
    name, _, rest = line.partition(" ")
    match name:
        case "/reset":
            talk.reset()
            console.say("new conversation" if talk.is_chat else "new text")
        case "/set":
            talk.use(_changed(talk.config.generation, *rest.strip().partition(" ")[::2]))
            console.say(f"set: {rest.strip()}")
        case "/save":
            _save(Path(rest.strip()).expanduser(), talk)
            console.say(f"saved: {rest.strip()}")
        case "/help":
            console.say(_HELP)
        case _:
            console.say(f"unknown command {name}\n{_HELP}")


def _changed(settings: GenerationConfig, key: str, text: str) -> GenerationConfig:
    """The settings with one key changed; raises ConfigError for an unknown key or invalid value."""
    names = sorted(set(GenerationConfig.model_fields) - _FIXED)
    if key not in names:
        raise ConfigError(
            f"{key!r} is not a setting of a conversation",
            where="/set",
            next=f"choose one of {', '.join(names)}",
        )
    try:
        values = settings.model_dump() | {key: yaml12.parse_scalar(text)}
        return GenerationConfig.model_validate(values)
    except (ValidationError, ValueError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"{key}: {what}",
            where=f"/set {key} {text}",
            kept=f"{key} is still {getattr(settings, key)!r}",
            next="give another value",
        ) from error


def _save(path: Path, talk: _Conversation) -> None:
    """Saves the conversation; never overwrites a file that this conversation did not write."""
    if path.name == "" or (path.exists() and path not in talk.saved):
        raise WriteError(
            "the file exists already" if path.name else "no file was named",
            where=f"/save {path}",
            next="choose another name: /save FILE",
        )
    talk.saved.add(path)
    messages = json.dumps(talk.messages, indent=1, ensure_ascii=False)
    atomic.replace_text(path, (messages if talk.is_chat else talk.text) + "\n")
