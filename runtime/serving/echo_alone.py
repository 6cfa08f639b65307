"""Responses with prompts and without answers, for `echo` with `max_tokens: 0`."""

from starlette.responses import JSONResponse, Response

from bita.runtime.serving.echoes import NoAnswer
from bita.runtime.serving.responses import Form
from bita.runtime.serving.streams import event_bytes


def echo_response(form: Form, num_choices: int, streams: bool, with_usage: bool) -> Response:
    """Return a response with the prompts of a request, each `num_choices` times."""
    answers = [NoAnswer(echo.token_ids) for echo in form.echoes for _ in range(num_choices)]
    if not streams:
        return JSONResponse(form.whole(answers))
    events = []
    for index, answer in enumerate(answers):
        events += [*form.opening(index), *form.closing(index, answer)]
    if with_usage:
        events.append(form.usage_chunk(answers))
    body = b"".join([*map(event_bytes, events), b"data: [DONE]\n\n"])
    return Response(body, media_type="text/event-stream")
