"""The documentation as a site: `make docs-html`."""
import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "Meadowlark"
author = "The Meadowlark authors"
copyright = "the Meadowlark authors"
release = version = importlib.metadata.version("meadowlark")

# MyST reads the pages as they are; the rest makes pages from the code.
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
nb_execution_mode = "off"               # notebooks hold what they gave; a test runs them
myst_heading_anchors = 4                # links to headings, as GitHub makes them
suppress_warnings = ["myst.header"]     # a page may begin with a small heading
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True                # attributes that are properties as well stand there once

html_theme = "furo"
html_title = "Meadowlark"
html_theme_options = {"navigation_with_keys": True}

#: Pages of the site that are files elsewhere in the project.
ELSEWHERE = {"examples": "models/README.md", "contributing": "CONTRIBUTING.md",
             "changelog": "CHANGELOG.md"}


def _source(app, name: str, source: list[str]) -> None:
    """Pages from elsewhere, and links to them."""
    text = source[0]
    if name in ELSEWHERE:
        text = (ROOT / ELSEWHERE[name]).read_text()
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
        text = re.sub(r"\[([^\]]+)\]\(LICENSE\)", r"\1", text)      # no page
    for page, file in ELSEWHERE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(file)}", f"]({page}.md", text)
    source[0] = text


def _plain(app, context, lines: list[str]) -> None:
    """Help texts are no markup: a token such as <|im_end|> is none either."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app) -> None:
    app.connect("source-read", _source)
    for part in ("description", "options"):
        app.connect(f"sphinx-click-process-{part}", _plain)
