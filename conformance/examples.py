"""Runs the examples of a Markdown file exactly as they are written there.

An example is a fenced block of sh, python or go with this comment on the line above it (blank lines may follow it):

    <!-- run: NAME -->
    <!-- run: NAME expect: REGEX -->

It must exit 0 within its time, and REGEX, if given, must be found in what it prints. Examples run one after the
other, in the order of the file, each in an empty directory, against a server that is already there: NATS_URL is set
to it, and `nats` and `bridge` are on the path. Python is the interpreter that runs this; a Go block is a whole program
that may import this module's packages.

    examples.py --file FILE --nats-url URL [--path DIR] [NAME…]
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT, Report

SECONDS = 60
COMMENT = re.compile(r"<!--\s*run:\s*(?P<name>\S+)(?:\s+expect:\s*(?P<expect>.*?))?\s*-->\s*")
LANGUAGES = ("sh", "python", "go")


@dataclass(frozen=True)
class Example:
    name: str
    language: str
    text: str
    expect: str | None
    line: int  # of the file, of the block's first line


def extract(markdown: str) -> list[Example]:
    """The marked blocks, in order. A mark that marks nothing, or twice the same name, is an error."""
    found: list[Example] = []
    lines = markdown.splitlines()
    at = 0
    while at < len(lines):
        mark = COMMENT.fullmatch(lines[at].strip())
        at += 1
        if not mark:
            continue
        while at < len(lines) and not lines[at].strip():
            at += 1
        fence = re.fullmatch(r"(`{3,}|~{3,})(\w+)\s*", lines[at]) if at < len(lines) else None
        if not fence or fence[2] not in LANGUAGES:
            raise ValueError(f"line {at + 1}: no block of {', '.join(LANGUAGES)} follows the mark {mark['name']!r}")
        if mark["name"] in (e.name for e in found):
            raise ValueError(f"line {at}: the name {mark['name']!r} is taken")
        end = next((i for i in range(at + 1, len(lines)) if lines[i].rstrip() == fence[1]), None)
        if end is None:
            raise ValueError(f"line {at + 1}: the block {mark['name']!r} has no end")
        text = "\n".join(lines[at + 1 : end]) + "\n"
        found.append(Example(mark["name"], fence[2], text, mark["expect"], at + 2))
        at = end + 1
    return found


def run(example: Example, env: dict[str, str]) -> str:
    """Runs one example and gives what it printed. Raises AssertionError when it fails."""
    # A Go program finds this module only from inside it; the dot keeps ./... from seeing it.
    parent = ROOT if example.language == "go" else None
    with tempfile.TemporaryDirectory(prefix=".conformance-example-", dir=parent) as directory:
        file = Path(directory) / {"sh": "example.sh", "python": "example.py", "go": "main.go"}[example.language]
        file.write_text(example.text)
        command = {
            "sh": ["bash", "-e", "-o", "pipefail", file],
            "python": [sys.executable, file],
            "go": ["go", "run", "."],
        }[example.language]
        child = subprocess.Popen(
            command, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            raw, _ = child.communicate(timeout=SECONDS)
            code = child.returncode
        except subprocess.TimeoutExpired:
            code = f"none after {SECONDS} s"
            os.killpg(child.pid, signal.SIGKILL)
            raw, _ = child.communicate()
    output = raw.decode(errors="replace")
    tail = "\n".join(output.splitlines()[-20:])
    assert code == 0, f"exit code {code}; it printed:\n{tail}"
    if example.expect is not None:
        assert re.search(example.expect, output, re.MULTILINE), f"/{example.expect}/ is not in what it printed:\n{tail}"
    return output


def run_examples(report: Report, file: Path, nats_url: str, path: list[Path], names: list[str] | None = None) -> None:
    assert file.exists(), f"there is no {file}"
    examples = [e for e in extract(file.read_text()) if not names or e.name in names]
    assert examples, f"{file} has no example that is marked to be run"
    env = os.environ | {"NATS_URL": nats_url, "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]])}
    for example in examples:
        with report.check(f"{file.name}:{example.line} {example.name} ({example.language})"):
            run(example, env)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--nats-url", required=True)
    parser.add_argument("--path", type=Path, action="append", default=[], help="a directory to put before PATH")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    report = Report()
    run_examples(report, args.file, args.nats_url, args.path, args.names)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
