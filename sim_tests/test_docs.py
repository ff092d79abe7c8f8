"""README and docs/: links and images resolve, commands parse, paths exist, recordings are true."""
import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import click
import pytest
from meadowlark.cli.group import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
         *sorted((ROOT / "docs").glob("*.md")),
         ROOT / "host/meadowlark/data/vivado/README.md"]
IMAGES = sorted((ROOT / "docs/images").glob("*.svg"))
RECORDING = ROOT / "docs/images/generate.svg"
SVG = "{http://www.w3.org/2000/svg}"

pages = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


def prose(text: str) -> str:
    """A page without what is code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4}.*$", "", text, flags=re.M))


def code(text: str) -> list[str]:
    """Lines of code blocks, and what stands between backquotes; comments are left out."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += [line[4:] for line in text.splitlines() if line.startswith("    ")]
    # A span may go on in the next line of its paragraph.
    spans = re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*$", "", text, flags=re.M))
    return [" ".join(re.split(r"\s#\s", found)[0].split()) for found in lines + spans]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    found = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found}


def broken_links(page: Path, text: str) -> list[str]:
    """Targets of a page's links and images that are not there."""
    broken = []
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    targets += re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken


def commands(text: str) -> list[list[str]]:
    """Arguments of each `meadowlark` command in a page; the command's name is the first."""
    found = []
    for line in code(text):
        for part in re.split(r"&&|\|", line):
            try:
                words = shlex.split(part)
            except ValueError:      # a drawing
                continue
            while words and re.match(r"time$|[A-Z]+=", words[0]):
                words = words[1:]
            if words[1:3] == ["-m", "meadowlark.cli"]:
                words = words[2:]
            if words and words[0] in ("meadowlark", ".venv/bin/meadowlark", "meadowlark.cli"):
                words = words[1:]
            elif not (len(words) > 1 and words[0] in cli.commands and words[1].startswith("-")):
                continue
            if words:
                found.append(words)
    return found


def refusal(words: list[str]) -> str | None:
    """Why click would not take a command; None if it would. Capitals stand for a value."""
    command = cli.commands.get(words[0])
    if command is None:
        return words[0] if not words[0].startswith("-") else None
    args = ["1" if re.fullmatch("[A-Z]+", word) else word for word in words[1:] if word != "..."]
    required = [p for p in command.params if p.required]
    if not args and required:
        return None             # only named, as in "`meadowlark build` makes one"
    try:
        command.make_context(words[0], list(args))
    except (click.MissingParameter, click.exceptions.Exit):
        # A page may leave out what does not matter there, but no more than that.
        return None
    except click.BadOptionUsage as error:
        # "`meadowlark eval --text` reads ..." names an option.
        return None if words[-1] == error.option_name else error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return None


@pages
def test_links(page):
    """Relative links and images resolve, their anchors too."""
    assert not broken_links(page, page.read_text())


@pages
def test_commands(page):
    """Each command that is shown exists, and takes the options and arguments shown."""
    refused = {" ".join(words): why for words in commands(page.read_text())
               if (why := refusal(words))}
    assert not refused


@pages
def test_targets_and_files(page):
    """Each target of make and each file of the project that a page names is there."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    missing = []
    for line in code(page.read_text()):
        for name in re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", line):
            missing += [] if name in targets else [f"make {name}"]
        for name in re.findall(r"(?:^|\s)((?:hdl|host|boards|sim_tests|scripts|docs)/[\w./-]+)"
                               r"(?![\w<*])", line):
            missing += [] if (ROOT / name).exists() else [name]
    assert not missing


def test_checks_find_faults():
    """A broken link, anchor, command, option and argument are found."""
    page = ROOT / "README.md"
    assert broken_links(page, "[a](docs/none.md) [b](docs/link.md#none) [c](docs/link.md#frames)") \
        == ["docs/none.md", "docs/link.md#none"]
    text = "`meadowlark generat x`, `meadowlark bench --none`, `bench -p 1 extra`\n\n" \
        "    .venv/bin/meadowlark eval --tokens few\n    meadowlark info stories  # all\n"
    refused = [words[0] for words in commands(text) if refusal(words)]
    assert sorted(refused) == ["bench", "bench", "eval", "generat"]
    assert ["info", "stories"] in commands(text)


def shown(file: Path) -> list[str]:
    """Lines of an SVG as a viewer sees them that does not animate, from the top."""
    lines: dict[float, str] = {}
    for text in ElementTree.parse(file).getroot().iter(f"{SVG}text"):
        if text.get("visibility") != "hidden":
            spans = sorted((float(s.get("x", 0)), s.text or "") for s in text.iter(f"{SVG}tspan"))
            lines[float(text.get("y", 0))] = " ".join(s for _, s in spans)
    return [line for _, line in sorted(lines.items())]


@pytest.mark.parametrize("file", IMAGES, ids=[f.name for f in IMAGES])
def test_image(file):
    """GitHub shows it: small, well formed, without scripts or anything from elsewhere."""
    assert file.stat().st_size < 150_000
    for element in ElementTree.parse(file).getroot().iter():
        assert element.tag not in (f"{SVG}script", f"{SVG}foreignObject", f"{SVG}image")
        assert not [name for name, value in element.attrib.items() if name.startswith("on")
                    or "href" in name and not value.startswith("#")]


def test_record(tmp_path):
    """A trivial command: what stands last is what is seen, what stood before is animated."""
    path, file = ROOT / "scripts/record.py", tmp_path / "a.svg"
    script = r"printf 'one '; sleep 0.2; printf '\033[31mtwo\033[0m <&>'; sleep 0.2; " \
        r"printf '\rsix'; sleep 0.2; echo"
    subprocess.run([sys.executable, path, "-o", file, "--columns", "40", "sh", "-c", script],
                   check=True, capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(
                       sys.path)})
    assert shown(file)[-1] == "six two <&>"
    text = file.read_text()
    assert text.count('visibility="hidden"') == 2 and ">one</tspan>" in text
    # Refused before anything runs, and nothing is written for a command that fails.
    for args in (["-o", tmp_path / "none/a.svg", "touch", tmp_path / "b"],
                 ["-o", tmp_path / "c.svg", "false"]):
        assert subprocess.run([sys.executable, path, *args], capture_output=True).returncode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg"]


def test_recording_is_true(capsys):
    """README's recording shows what the model says today: the golden model, which the chip equals,
    gives the same text to the same command."""
    from meadowlark.cli import main
    title = ElementTree.parse(RECORDING).getroot().findtext(f"{SVG}title", "")
    words = shlex.split(title)
    assert words[:2] == ["meadowlark", "generate"] and "--check" in words
    words.remove("--check")
    assert main([*words[1:], "--target", "golden", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    text = "".join(shown(RECORDING))
    for part in [words[-1] + result["text"], f"over {len(result['tokens'])} tokens"]:
        assert "".join(part.split()) in "".join(text.split()), \
            "README's recording is out of date; docs/testing.md says how to make it anew"


def test_pages_are_found():
    """README links to every page of docs/, but for those of the site alone."""
    text, of_the_site = (ROOT / "README.md").read_text(), {
        f"{name}.md" for name in ("index", "commands", "api", "examples", "contributing",
                                  "changelog")}
    assert not [p.name for p in (ROOT / "docs").glob("*.md")
                if f"(docs/{p.name})" not in text and p.name not in of_the_site]


def test_every_name_is_in_the_reference():
    """Of `import meadowlark as ml`; and every page is in the site's index."""
    import meadowlark as ml
    api = (ROOT / "docs" / "api.md").read_text()
    for name in ml.__all__:
        assert re.search(rf"auto\w+:: meadowlark\.(api\.)?{name}$", api, re.M), name
    index = re.findall(r"^(?:.*<([\w-]+)>|([a-z][\w-]+))$", (ROOT / "docs/index.md").read_text(),
                       re.M)
    listed = {name or page for page, name in index}
    assert listed >= {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
