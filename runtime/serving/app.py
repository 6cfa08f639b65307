"""The HTTP application: routes, limits, and answers sent whole or streamed."""

import asyncio
import contextlib
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from time import monotonic

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bita.errors import BitaError, PromptError
from bita.runtime.generation import Generation
from bita.runtime.options import Options, new_seed
from bita.runtime.serving.chat_page import chat_page
from bita.runtime.serving.echo_alone import echo_response
from bita.runtime.serving.echoes import Echo, echo_of
from bita.runtime.serving.endpoints import Endpoints
from bita.runtime.serving.errors import RequestError, blaming, code_of, error_body
from bita.runtime.serving.hosts import HostGate
from bita.runtime.serving.metrics import Metrics
from bita.runtime.serving.planning import Plan, make_plan
from bita.runtime.serving.queue import Job, Line, Piece
from bita.runtime.serving.requests import (
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    parse_request,
)
from bita.runtime.serving.responses import Form
from bita.runtime.serving.settings import ServerSettings
from bita.runtime.serving.streams import Stream, event_bytes, unless_gone
from bita.runtime.session import Session

log = logging.getLogger("bita.serve")
Handler = Callable[[Request], Awaitable[Response]]
BODY_SECONDS = 30.0  # time limit for receiving a request's body
TAKING_SECONDS = 30.0  # time for a client to receive the rest of a stream after the last token
SMALL_BODY = 1 << 14  # bytes; smaller bodies are parsed in the event loop


@dataclass
class Started:
    """The answers to a request, before their first step, and the form in which they are sent."""

    generations: list[Generation]
    form: Form


class Server:
    """Serves one engine over HTTP. `app` is the ASGI application."""

    def __init__(self, session: Session, settings: ServerSettings) -> None:
        """Start the engine thread. Raises PromptError if defaults or the time limit are invalid."""
        Options.of(**{**settings.defaults, "timeout_s": settings.request_seconds})
        self._session = session
        self._settings = settings
        self._more = Endpoints(session, settings.names, settings.num_running, self._body)
        self._fingerprint = f"bita_{session.engine.files['model.onnx']['sha256'][:12]}"
        self.metrics = Metrics()
        self.line = Line(
            session,
            settings.num_waiting,
            settings.num_running,
            self.metrics.count_steps,
            self._count,
        )
        self.metrics.watch(
            "requests_waiting", "requests waiting in line", lambda: float(self.line.num_waiting)
        )
        self.metrics.watch(
            "requests_running", "requests being answered", lambda: float(self.line.num_running)
        )
        self.app = self._application()

    def _application(self) -> Starlette:
        more = self._more
        routes = [
            self._route("/tokenize", more.tokenize, "POST"),
            self._route("/detokenize", more.detokenize, "POST"),
            self._route("/props", more.props, "GET"),
            self._route("/v1/chat/completions", self._chat, "POST"),
            self._route("/v1/completions", self._complete, "POST"),
            self._route("/v1/models", more.models, "GET"),
            self._route("/v1/models/{name:path}", more.model, "GET"),
            self._route("/metrics", self._metrics, "GET"),
            Route("/health", self._health, methods=["GET"]),
            Route("/", chat_page, methods=["GET"]),
        ]
        middleware = [
            Middleware(HostGate, names=list(self._settings.allowed_hosts)),
        ]
        if self._settings.allowed_origins:
            origins = list(self._settings.allowed_origins)
            middleware.append(
                Middleware(
                    CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
                )
            )
        handlers = {404: _no_route, 405: _no_method}
        return Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers=handlers,
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with contextlib.suppress(BitaError):  # the first request with a grammar reports it
            await asyncio.to_thread(self._session.load_grammars)
        yield
        await asyncio.to_thread(self.line.close)

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        """Return a route that checks the API key, sends errors as JSON, and counts responses."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                response = await handler(request)
            except RequestError as refusal:
                response = JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)
            except PromptError as refusal:
                body = error_body(str(refusal), "invalid_request_error", code_of(refusal))
                response = JSONResponse(body, 400)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as fault:
                log.exception("a request failed")
                text = (
                    str(fault) if isinstance(fault, BitaError) else "the server failed; see its log"
                )
                response = JSONResponse(error_body(text, "server_error"), 500)
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            return response

        return Route(path, guarded, methods=[method])

    def _check_key(self, request: Request) -> None:
        key = self._settings.api_key
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        came = given.strip().encode("latin-1")  # the bytes as they came
        is_right = scheme.lower() == "bearer" and hmac.compare_digest(came, (key or "").encode())
        if key and not is_right:
            raise RequestError(
                401,
                "the API key is missing or wrong; send it as: Authorization: Bearer KEY",
                "authentication_error",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: type[AnswerRequest]) -> Response:
        body = await self._body(request)
        self.line.take_place()  # before parsing, which may take many times the body's memory
        job: Job | None = None
        try:
            asked = await _parse(kind, body)
            self._check_asked(asked)
            started = await self._start_in_thread(request, asked)
            form = started.form
            if not started.generations:
                response = echo_response(form, asked.n, asked.stream, asked.includes_usage)
                self.line.leave()
                return response
            job = Job(
                started.generations,
                asyncio.get_running_loop(),
                asked.stream,
                _client_of(request, asked),
            )
            self.line.join(job)
            if asked.stream:
                first = await unless_gone(request, self._first_event(job))
                pieces = self._pieces(asked, form, job, first)
                rest = self._settings.request_seconds + job.came_at - monotonic()
                return Stream(pieces, rest + TAKING_SECONDS, lambda: self.line.leave(job))
            await unless_gone(request, self._until_end(job))
            response = JSONResponse(form.whole(job.generations))
        except BaseException:
            self.line.leave(job)
            raise
        self.line.leave(job)
        return response

    def _check_asked(self, asked: AnswerRequest) -> None:
        """Raise RequestError for an unknown model or too many messages."""
        self._more.check_model(asked.model)
        limit = self._settings.max_messages
        if isinstance(asked, ChatRequest) and len(asked.messages) > limit:
            with blaming("messages"):
                raise PromptError(f"there are {len(asked.messages)} messages; send at most {limit}")

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request. Raises RequestError if it is not JSON or too large."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(
                415, f"the content type is {kind[:100] or 'not given'}; send application/json"
            )
        limit = self._settings.max_body_bytes
        body = bytearray()
        try:
            with anyio.fail_after(BODY_SECONDS):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        raise RequestError(
                            413,
                            f"the body has over {limit} bytes",
                            headers={"Connection": "close"},
                        )
        except TimeoutError:
            raise RequestError(
                408,
                f"the body did not arrive within {BODY_SECONDS:g} seconds",
                headers={"Connection": "close"},
            ) from None
        return bytes(body)

    async def _start_in_thread(self, request: Request, asked: AnswerRequest) -> Started:
        """Call `_start` in a thread; give up if the client disconnects."""
        is_gone = threading.Event()
        try:
            starting = asyncio.to_thread(self._start, asked, lambda: not is_gone.is_set())
            return await unless_gone(request, starting)
        finally:
            is_gone.set()

    def _start(self, asked: AnswerRequest, is_wanted: Callable[[], bool]) -> Started:
        """Prepare the answers to a request, before their first step.

        Raises RequestError or PromptError if the request is invalid.
        """
        ends_at = monotonic() + self._settings.request_seconds
        limit = min(self._settings.answer_tokens, self._session.engine.manifest.capacity)
        plan = make_plan(asked, self._session.encoder, self._settings.defaults, limit)
        plan.check_grammars(lambda grammar: self._session.check_grammar(grammar, is_wanted))
        is_chat = isinstance(asked, ChatRequest)
        with blaming("messages" if is_chat else "prompt"):
            form = self._form(asked, plan, self._echoes(asked))
            if isinstance(asked, CompletionRequest) and asked.max_tokens == 0:
                return Started([], form)
            for prompt in plan.prompts:
                self._session.decoder.check_prompt(self._session.encode(prompt))
        seconds = max(ends_at - monotonic(), 0.001)
        options = replace(plan.options, timeout_s=seconds)
        seed = options.seed if options.seed is not None else new_seed()
        generations = [
            self._session.start(
                prompt,
                options,
                seed=seed,
                choice=choice,
                drafts=asked.drafts,
                eos_ids=plan.eos_ids,
                continues=plan.continues,
            )
            for prompt in plan.prompts
            for choice in range(asked.n)
        ]
        return Started(generations, form)

    def _echoes(self, asked: AnswerRequest) -> list[Echo]:
        """Return the prompts that are to be part of the answers."""
        if not isinstance(asked, CompletionRequest) or not asked.echo:
            return []
        return [echo_of(self._session, prompt, asked.logprobs) for prompt in asked.prompts()]

    def _form(self, asked: AnswerRequest, plan: Plan, echoes: list[Echo]) -> Form:
        return Form(
            isinstance(asked, ChatRequest),
            asked.model or self._settings.model_name,
            self._fingerprint,
            self._session.codec,
            asked.num_logprobs() is not None,
            asked.n,
            plan.reader,
            echoes,
            asked.draft_marks,
        )

    async def _until_end(self, job: Job) -> None:
        event = await self._first_event(job)
        while event is not None:
            event = _check_event(await job.events.get())

    async def _first_event(self, job: Job) -> Piece | None:
        """Wait for a job's first event. Raises RequestError 503 if the job is not begun in time."""
        waits = self._settings.request_seconds - (monotonic() - job.came_at)
        try:
            with anyio.fail_after(max(waits, 0)):
                return _check_event(await job.events.get())
        except TimeoutError:
            if self.line.expire(job):
                raise RequestError(
                    503,
                    f"the engine did not get to this request within "
                    f"{self._settings.request_seconds:g} seconds",
                    "server_error",
                    "timeout",
                    headers={"Retry-After": "1"},
                ) from None
        return _check_event(await job.events.get())

    async def _pieces(
        self, asked: AnswerRequest, form: Form, job: Job, event: Piece | None
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""
        opened: set[int] = set()
        try:
            while event is not None:
                index, generation = event.index, job.generations[event.index]
                if index not in opened:
                    opened.add(index)
                    for chunk in form.opening(index):
                        yield event_bytes(chunk)
                for chunk in form.pieces(index, event.text, generation):
                    yield event_bytes(chunk)
                if event.has_ended:
                    for chunk in form.closing(index, generation):
                        yield event_bytes(chunk)
                event = _check_event(await job.events.get())
            if asked.includes_usage:
                yield event_bytes(form.usage_chunk(job.generations))
            yield b"data: [DONE]\n\n"
        except (RequestError, BitaError) as refusal:
            yield event_bytes(error_body(str(refusal), "server_error"))
        except Exception:
            log.exception("a stream failed")
            yield event_bytes(error_body("the server failed; see its log", "server_error"))

    def _count(self, job: Job) -> None:
        now = monotonic()
        self.metrics.count(job, now)
        log.info(
            "%s: prompt of %d tokens, %d cached; %d tokens in %d steps; %.3f s in line, %.3f s",
            ", ".join(each.finish_reason or "failed" for each in job.generations),
            sum(len(each.prompt_ids) for each in job.generations),
            sum(each.num_reused for each in job.generations),
            sum(len(each.token_ids) for each in job.generations),
            job.num_steps,
            (job.started_at or now) - job.came_at,
            now - job.came_at,
        )


def _client_of(request: Request, asked: AnswerRequest) -> str:
    """Return a name for the client: the user that a request names, or its address."""
    return asked.client or (request.client.host if request.client else "")


async def _parse(kind: type[AnswerRequest], body: bytes) -> AnswerRequest:
    """Parse the request in a body; a large one is parsed outside the event loop."""
    if len(body) <= SMALL_BODY:
        return parse_request(kind, body)
    return await asyncio.to_thread(parse_request, kind, body)


def _check_event(event: Piece | BaseException | None) -> Piece | None:
    if isinstance(event, BaseException):
        raise event
    return event


async def _no_route(request: Request, error: Exception) -> Response:
    return JSONResponse(
        error_body(f"there is no {request.url.path:.200}", "invalid_request_error"), 404
    )


async def _no_method(request: Request, error: Exception) -> Response:
    text = f"{request.url.path:.200} does not accept {request.method:.20}"
    return JSONResponse(error_body(text, "invalid_request_error"), 405)
