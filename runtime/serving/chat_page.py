"""The chat page at `/`: a single file, assembled from `page/`, without external resources."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse

FOLDER = Path(__file__).with_name("page")
SCRIPTS = ("answers.js", "text.js", "chat.js")  # in this order
STYLE_PLACE, SCRIPT_PLACE = "/* style */", "/* script */"


async def chat_page(request: Request) -> HTMLResponse:
    """Return the page. It needs no API key; its requests to the server may."""
    text, headers = _page()
    return HTMLResponse(text, headers=headers)


@cache
def _page() -> tuple[str, dict[str, str]]:
    style = (FOLDER / "chat.css").read_text(encoding="utf-8")
    script = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    text = (FOLDER / "chat.html").read_text(encoding="utf-8")
    text = text.replace(STYLE_PLACE, style).replace(SCRIPT_PLACE, script)
    return text, {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _policy(style, script),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _policy(style: str, script: str) -> str:
    """Return a policy that allows the page's own style and script, and requests to its server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "connect-src 'self'",
            "img-src data:",  # for the icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
