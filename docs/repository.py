"""A hook of mkdocs: pages may link to files of the repository outside docs/, which the site then holds too.

Markdown files (the records of benchmarks) become pages, others (plugins of the tests) are copied; both under
`repository/`. Read on GitHub the links are ordinary relative ones.
"""

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
HERE = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what those files link to in turn."""
    root = Path(config.docs_dir).parent
    waiting = [(f"docs/{file.src_uri}", file) for file in files.documentation_pages()]
    while waiting:
        source, file = waiting.pop()
        for link in LINK.findall(file.content_string):
            target = normpath(f"{source}/../{link}")
            place = _place(target)
            if files.get_file_from_path(place) is None and (root / target).is_file():
                added = File.generated(config, place, abs_src_path=str(root / target))
                files.append(added)
                if place.endswith(".md"):
                    waiting.append((target, added))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point the links of a page at where the site has the files."""
    place = page.file.src_uri
    source = place.removeprefix(f"{HERE}/") if place.startswith(f"{HERE}/") else f"docs/{place}"

    def moved(link: re.Match[str]) -> str:
        target = _place(normpath(f"{source}/../{link[0]}"))
        return link[0] if files.get_file_from_path(target) is None else relpath(target, f"{place}/..")

    return LINK.sub(moved, markdown)


def _place(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{HERE}/{path}"
