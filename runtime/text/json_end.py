"""Detection of the end of a JSON value in a text that arrives in pieces."""


class JsonEnd:
    """Follows an object or a list from its first bracket. `is_over`: whether it has ended."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def push(self, text: str) -> int:
        """Add text and return the number of its characters that belong to the value."""
        for place, character in enumerate(text):
            if self.is_over:
                return place
            self._follow(character)
        return len(text)

    def _follow(self, character: str) -> None:
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_over = self._depth <= 0
