"""Hooks of mkdocs: pages that are elsewhere in the repository, and links to its files.

The overview is README.md, the changes are CHANGELOG.md, and the adapters' card is in adapters/. A
link to another file of the repository, such as the JSON of a measurement, leads to a copy of it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "adapters.md": "adapters/smollm2-135m-instruct.md",
}
COPIES = "repository"  # folder of the site
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and the files that pages link to."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    copied = set()
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            target = _target(file.src_uri, match[1])
            if _is_copied(target) and target not in copied:
                copied.add(target)
                files.append(
                    File.generated(
                        config, f"{COPIES}/{target}", content=(ROOT / target).read_bytes()
                    )
                )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of the repository's files links of the site."""
    uri = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target, anchor = _target(uri, match[1]), match[2] or ""
        pages = {source: name for name, source in ELSEWHERE.items()}
        if target in pages:
            return pages[target] + anchor
        if target.startswith("docs/"):
            return target.removeprefix("docs/") + anchor
        return f"{COPIES}/{target}{anchor}" if _is_copied(target) else match[0]

    return LINK.sub(moved, markdown)


def _target(page: str, link: str) -> str:
    """Return the path from the repository's root that a link of a page leads to."""
    source = ELSEWHERE.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_copied(target: str) -> bool:
    known = target in ELSEWHERE.values() or target.startswith(("docs/", ".."))
    return not known and (ROOT / target).is_file()
