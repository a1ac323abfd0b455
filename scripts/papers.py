#!/usr/bin/env python3
"""Writes docs/papers.md from the registry (`attend list --json`); with --check only says whether it is up to date."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "papers.md"


def page(attend):
    entries = json.loads(subprocess.run([attend, "list", "--json"], capture_output=True, check=True).stdout)
    lines = ["# Papers", "", "What each entry of the registry implements. Made by `make papers`; `attend info NAME` shows the",
             "equation, options and limits of an entry.", "", "| entry | kind | paper | arXiv | catalogue |",
             "|---|---|---|---|---|"]
    for entry in entries:
        for paper in entry["papers"]:
            arxiv = paper.get("arxiv", "")
            link = f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else ""
            lines.append(f"| `{entry['name']}` | {entry['kind']} | {paper['title']} | {link} | {paper['catalogue']} |")
    return "\n".join(lines) + "\n"


def main():
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    text = page(arguments[0] if arguments else ROOT / "build" / "release" / "attend")
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit("docs/papers.md is not what the registry says: run `make papers`")


if __name__ == "__main__":
    main()
