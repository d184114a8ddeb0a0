"""CONTRIBUTING.md says what is so: its paths, its functions, its table of folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shadowmesh"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOPS = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir())
PICTURE = re.search(r"```\n(host A.*?)```", TEXT, re.DOTALL)[1]
#: `name, name (folder/file)` in the picture
STEPS = re.findall(r"([a-z_]+(?:, [a-z_]+)*) \(([a-z]+/[a-z_]+\.[a-z]+)\)", PICTURE)


def test_every_path_leads_somewhere():
    paths = set(re.findall(rf"`((?:{TOPS})/[\w./-]*)`", TEXT.replace("NAME.py", "")))
    assert len(paths) > 25
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


@pytest.mark.parametrize(("names", "path"), STEPS, ids=[path for _, path in STEPS])
def test_every_function_of_the_picture_is_where_it_says(names, path):
    text = (PACKAGE / path).read_text(encoding="utf-8")
    for name in names.split(", "):
        assert re.search(rf"\bdef {name}\(|inline .*\b{name}\(", text), name


def test_the_table_has_every_folder_of_the_package():
    table = TEXT.partition("| `shadowmesh/` | owns |")[2].partition("\n\n")[0]
    named = {
        cell.rstrip("/") for row in table.splitlines() for cell in re.findall(r"`([\w./]+)`", row)
    }
    there = {
        entry.name
        for entry in PACKAGE.iterdir()
        if not entry.name.startswith("__") and entry.suffix in ("", ".pyx")
    }
    assert there <= named


def test_it_is_one_page():
    assert len(TEXT.splitlines()) < 130


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("shadowmesh/control/routes.py", "ROUTES"),
        ("shadowmesh/control/app.py", "Control"),
        ("shadowmesh/config/schema.py", "_KEYS"),
        ("shadowmesh/_fastpath.pyx", "DROP_NAMES"),
        ("shadowmesh/_fastpath.pyx", "REFUSAL_NAMES"),
        ("shadowmesh/fast/hooks/records.pyx", "REASONS"),
        ("shadowmesh/fast/hooks/records.pyx", "REFUSED"),
    ],
)
def test_what_a_recipe_names_is_in_that_file(path, name):
    assert f"`{name}`" in TEXT
    assert re.search(
        rf"^(?:class )?{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize("prefix", ["DROP_", "REFUSED_"])
def test_the_reasons_of_drops_are_in_the_file_that_the_recipe_names(prefix):
    [path] = set(
        re.findall(r"`(shadowmesh/fast/\w+\.pxd)`", TEXT.partition("**A drop reason.**")[2])
    )
    assert re.search(rf"^    {prefix}[A-Z_]+ = 0", (ROOT / path).read_text(), re.MULTILINE)
