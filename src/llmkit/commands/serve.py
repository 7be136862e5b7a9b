"""`llmkit serve`: models behind HTTP, in the form of OpenAI's API."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.distributed import signals
from llmkit.distributed.launcher import n_processes
from llmkit.errors import Interrupted
from llmkit.inference import generate
from llmkit.reporting import samples
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.serving.engines.leading import Orders, follow_orders
from llmkit.serving.http import address, keys
from llmkit.serving.http.app import build_app
from llmkit.serving.http.guard import Guard
from llmkit.serving.http.keys import ApiKeys
from llmkit.serving.http.server import ServerEnd, run_server
from llmkit.serving.named_model import WritingModel
from llmkit.serving.served import ServedModel, open_served
from llmkit.serving.service import Service, load_service


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Serves the models until a signal; returns what was served. Of several processes, which hold
    a model together, rank 0 serves, and the others follow."""
    served, allowed = _prepare(config)
    if n_processes() == 1:
        return _serve(config, served, allowed, None, console)
    # Imported here: accelerate takes long to import.
    from llmkit.distributed.processes import join_processes

    with join_processes("fp32", one_model=True) as processes:
        orders = Orders()
        if processes.is_main:
            return _serve(config, served, allowed, orders, console)
        for number in signals.SIGNALS:  # rank 0 finishes its requests first
            signal.signal(number, signal.SIG_IGN)
        follow_orders(generate.engine(config, served[0].opened, processes.device), orders)
        return {"command": "serve"}


def _serve(
    config: Config,
    served: list[ServedModel],
    allowed: ApiKeys,
    orders: Orders | None,
    console: Console,
) -> dict[str, Any]:
    listener = address.open_listener(config.serve)
    with console.loading_model():
        service = load_service(served, config, console.warn, orders)
    _warn(service, listener, allowed, console)
    app = Guard(build_app(service), config.serve, allowed, service.metrics, console.warn)
    began = time.monotonic()
    stopped = run_server(
        app, service, listener, lambda: _say_ready(service, listener, console), console.say
    )
    if orders is not None:
        orders.send({"stop": True})
    return _summary(service, stopped, time.monotonic() - began, console)


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks models, address and keys, without loading weights."""
    served, allowed = _prepare(config)
    address.check_address(config.serve)
    return {
        "command": "serve",
        "models": [_described(model) for model in served],
        "host": config.serve.host,
        "port": config.serve.port,
        "api_keys": len(allowed),
    }


def _prepare(config: Config) -> tuple[list[ServedModel], ApiKeys]:
    """The models without weights, and the API keys; both checked."""
    generate.resolved(config, generate.usual_device())
    return open_served(config), keys.read_api_keys(config.serve)


def _described(model: ServedModel) -> dict[str, Any]:
    found = {"name": model.name, "model": model.opened.name, "task": model.task}
    if model.labels:
        return {**found, "labels": list(model.labels)}
    return {**found, "context": model.opened.context}


def _warn(service: Service, listener: socket.socket, allowed: ApiKeys, console: Console) -> None:
    for model in service.models.values():
        if isinstance(model, WritingModel) and model.warning is not None:
            console.warn(model.warning)
    if not allowed and not address.is_local(listener):
        console.warn(
            f"everybody who reaches {service.config.serve.host} can use the models; "
            "serve.api_key_file=FILE asks for a key"
        )


def _say_ready(service: Service, listener: socket.socket, console: Console) -> None:
    url = address.url_of(listener)
    if console.json:
        models = [{"name": name, "task": task} for name, task in service.tasks.items()]
        samples.put(json.dumps({"url": url, "models": models}) + "\n")
    console.say(f"serving at {url}")
    width = max(map(len, service.tasks))
    for name, task in service.tasks.items():
        console.say(f"  {name:{width}}  {task}, {service.models[name].precision}")
    console.say("  / is a page to try it, /docs lists all requests; Ctrl-C stops")


def _summary(
    service: Service, stopped: ServerEnd, seconds: float, console: Console
) -> dict[str, Any]:
    figures = service.metrics
    if stopped.cut:
        console.warn(f"{many(stopped.cut, 'request')} did not finish within serve.grace")
    found = {
        "command": "serve",
        "requests": figures.total("llmkit_requests"),
        "requests_cut": stopped.cut,
        "generated_tokens": figures.total("llmkit_generated_tokens"),
        "labelled_texts": figures.total("llmkit_labelled_texts"),
        "seconds": round(seconds, 3),
    }
    if stopped.signal == signal.SIGINT:
        answered = many(figures.total("llmkit_requests"), "request")
        raise Interrupted("stopped by Ctrl-C", kept=f"{answered} answered before")
    return found
