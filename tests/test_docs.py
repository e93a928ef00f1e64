"""What the docs say is what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_generated_pages_are_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}\nrun `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("examples/**/*.md")]
    assert len(pages) > 5
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not dead


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, continued lines joined; not `make test`, which this is part of."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    typed = [line.partition("  #")[0].strip() for line in lines]
    return [line for line in typed if line and not line.startswith((". .venv", "make test", "pip "))]


def programs(page: Path) -> list[str]:
    """The page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("page", "leaves"),
    [
        ("README.md", "build/readme"),
        ("docs/guides/int8.md", "build/int8"),
        ("docs/guides/to-tflite.md", "build/tflite"),
        ("docs/guides/to-coreml.md", "build/coreml"),
        ("docs/guides/to-ncnn.md", "build/ncnn"),
        ("examples/bert/README.md", "build/bert"),
    ],
)
def test_the_commands_of_a_page_work(page: str, leaves: str, tmp_path: Path, cache: Path) -> None:
    """In order, as a reader would type them, in a copy of the repository."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "examples", "recipes"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path / name)], check=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(cache),
    }
    typed = commands(ROOT / page)
    assert len(typed) >= 2
    for command in typed:
        if command.startswith("make "):
            # In the environment that the tests run in, which is taken as up to date.
            command += f" VENV={sys.prefix} -o {sys.prefix}/.demo"
        ended = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    for program in programs(ROOT / page):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / leaves / "report.html").is_file()
