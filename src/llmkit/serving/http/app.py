"""The routes of the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import llmkit
from llmkit.serving import bodies, metrics
from llmkit.serving.admission import ClientGone
from llmkit.serving.bodies import BODIES, AnswerBody, ChatBody, ClassifyBody, CompletionBody
from llmkit.serving.engines.jobs import TextJob
from llmkit.serving.http import pages
from llmkit.serving.http.stream import TextStream
from llmkit.serving.named_model import B, RowModel, WritingModel
from llmkit.serving.refusals import Refusal, failed, no_such_model
from llmkit.serving.responses import TextResponse
from llmkit.serving.service import Service


def build_app(service: Service) -> FastAPI:
    """The application for the models of a service."""
    app = FastAPI(
        title="llmkit serve", version=llmkit.__version__, docs_url=None, redoc_url=None,
        summary="The models that this server offers, in the form of OpenAI's API.",
    )  # fmt: skip
    _add_text(app, service)
    _add_labels(app, service)
    _add_models(app, service)
    _add_states(app, service)
    _add_pages(app)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(ClientGone, _nobody_left)
    app.add_exception_handler(Exception, _bug)
    return app


def _add_text(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", summary="Continue text")
    async def complete(request: Request, body: CompletionBody) -> Response:
        model = service.text_model(body.model)
        several = 1 if isinstance(body.prompt, str) else len(body.prompt)
        _check_texts(service, several * body.n, "prompt")
        make = partial(model.completion_job, body)
        respond = partial(TextResponse, model, is_chat=False, n_logprobs=body.logprobs)
        return await _generate(service, request, model, body, make, respond)

    @app.post("/v1/chat/completions", summary="Continue a conversation")
    async def chat(request: Request, body: ChatBody) -> Response:
        model = service.text_model(body.model)
        _check_texts(service, body.n, "n")
        make = partial(model.chat_job, body)
        n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        respond = partial(TextResponse, model, is_chat=True, n_logprobs=n_logprobs)
        return await _generate(service, request, model, body, make, respond)


async def _generate(
    service: Service,
    request: Request,
    model: WritingModel,
    body: CompletionBody | ChatBody,
    make: Callable[[], TextJob],
    respond: Callable[[TextJob], TextResponse],
) -> Response:
    """Carries out a request for text."""
    ticket = service.admission.admit(request, model.name)
    try:
        job = await ticket.submit(make, body.n_characters())
        response = respond(job)
        if body.stream:
            await ticket.next()  # errors before the first token have their own status
            options = body.stream_options
            return TextStream(ticket, response, options is not None and options.include_usage)
        await ticket.finish()
        return JSONResponse(response.whole())
    finally:
        if not body.stream or not ticket.has_begun:
            ticket.close()


def _add_labels(app: FastAPI, service: Service) -> None:
    @app.post("/v1/classify", summary="Classify texts, or label spans of them")
    async def classify(request: Request, body: ClassifyBody) -> Response:
        model = service.label_model(body.model)
        _check_texts(service, len(body.texts()), "input")
        return await _label(service, request, model, body, body.n_characters())

    @app.post("/v1/answer", summary="Answer questions with spans of their contexts")
    async def answer(request: Request, body: AnswerBody) -> Response:
        model = service.answer_model(body.model)
        _check_texts(service, len(body.texts()), "question")
        return await _label(service, request, model, body, body.n_characters())


async def _label(
    service: Service, request: Request, model: RowModel[B], body: B, n_characters: int
) -> Response:
    """Carries out a request for labels."""
    ticket = service.admission.admit(request, model.name)
    try:
        job = await ticket.submit(partial(model.job, body), n_characters)
        await ticket.finish()
        return JSONResponse(model.response(job))
    finally:
        ticket.close()


def _check_texts(service: Service, n_texts: int, field: str) -> None:
    limit = service.config.serve.max_texts
    if n_texts > limit:
        message = f"{field}: makes {n_texts} texts; this server allows {limit} (serve.max_texts)"
        raise Refusal(message, param=field)


def _add_models(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    def describe(name: str) -> dict[str, object]:
        model = service.models[name]
        found = {"id": name, "object": "model", "created": started, "owned_by": "llmkit"}
        found |= {"task": service.tasks[name], "system_fingerprint": model.fingerprint}
        return {**found, **model.facts}

    @app.get("/v1/models", summary="The models, with what each does")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [describe(name) for name in service.models]}

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, object]:
        if name not in service.models:
            raise no_such_model(name, list(service.models))
        return describe(name)


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the engine is alive: 200, or else 503")
    async def health() -> Response:
        return _state(service.worker.trouble())

    @app.get("/ready", summary="Whether a request would be accepted now: 200, or else 503")
    async def ready() -> Response:
        return _state(service.admission.trouble())

    @app.get("/metrics", summary="Figures in the format of Prometheus")
    async def figures() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return pages.try_page()

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return pages.docs_page(app.openapi(), str(request.base_url).rstrip("/"))


def _state(trouble: str) -> Response:
    if not trouble:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "reason": trouble}, 503)


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


async def _invalid(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestValidationError)
    names = [name for body in BODIES for name in body.model_fields]
    kind = request.headers.get("content-type", "")
    if "json" not in kind:
        message = f"send JSON with `Content-Type: application/json`; got {kind or 'none'}"
        return await _refused(request, Refusal(message, code="invalid_body"))
    return await _refused(request, bodies.refusal_of(fault.errors(), names))


async def _no_route(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    message = {
        404: f"there is no {request.url.path}; /docs lists all paths",
        405: f"{request.url.path} does not accept {request.method}",
    }.get(fault.status_code, "the body cannot be read as JSON")
    refusal = Refusal(message, status=fault.status_code, code="invalid_request")
    refusal.headers |= fault.headers or {}
    return await _refused(request, refusal)


async def _bug(request: Request, fault: Exception) -> Response:
    return await _refused(request, failed("a bug in llmkit"))  # which the guard reports


async def _nobody_left(request: Request, fault: Exception) -> Response:
    return Response(status_code=499)  # the status of nginx; nobody reads it but the metrics
