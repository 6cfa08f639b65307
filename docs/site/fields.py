"""An extension of griffe: the comment after a field is the field's documentation."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Take the trailing comment of an attribute without a docstring as its docstring."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any
    ) -> None:
        """Look at the line that the attribute is written on."""
        if attr.docstring or attr.lineno is None or attr.name.startswith("_"):
            return
        if not isinstance(attr.filepath, Path):
            return
        line = attr.lines_collection[attr.filepath][attr.lineno - 1]
        comment = re.search(r"  # (.+)$", line)
        if comment:
            attr.docstring = griffe.Docstring(comment[1], lineno=attr.lineno, parent=attr)
