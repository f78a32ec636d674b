"""Lines of code in the rooms, without tests, blank lines, comments and docstrings: of what is here, or of a revision.

python benchmarks/lines.py --rev e6327c9
"""

import argparse
import ast
import io
import subprocess
import tokenize
from collections import Counter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
OTHERS = ("benchmarks", "tests")
NOT_CODE = {
    *(tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def lines_of_code(source: str) -> int:
    """Lines that hold code; a string that is a statement of its own is a docstring, wherever it stands."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def git(*arguments: str) -> str:
    """What git says."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def sources(revision: str | None) -> dict[str, str]:
    """The text of every Python file by path: of a revision, or of the files here that git knows or does not ignore."""
    if revision:
        paths = git("ls-tree", "-r", "-z", "--name-only", revision).split("\0")
        return {path: git("show", f"{revision}:{path}") for path in paths if path.endswith(".py")}
    paths = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = {path: ROOT / path for path in paths if path.endswith(".py")}
    return {path: file.read_text(encoding="utf-8") for path, file in files.items() if file.is_file()}


def room(path: str) -> str:
    """The room of a file: its folder at the top, or the ground floor in the front door's."""
    parts = PurePosixPath(path).parts
    return "/".join(parts[:2]) if parts[:2] == ("palenka", "ground") else parts[0]


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rev", help="revision to count; what is here unless given")
    revision = parser.parse_args().rev
    counts: Counter[str] = Counter()
    for path, source in sources(revision).items():
        if "/" in path and room(path) not in OTHERS:
            counts[room(path)] += lines_of_code(source)
    for name, count in sorted(counts.items()):
        print(f"{name:<16} {count:>6,}")
    print(f"{'total':<16} {counts.total():>6,}")


if __name__ == "__main__":
    main()
