"""Text from outside, as it may be printed or logged: on one line, and of bounded length."""


def visible(text: str, most: int | None = None) -> str:
    """A text with what is not printable written as an escape, cut to `most` characters of it.

    Line ends, control characters of terminals and halves of surrogate pairs are not printable.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}... ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
