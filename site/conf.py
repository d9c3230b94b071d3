"""Settings of the documentation site: the pages in docs/, and a reference made of the code. `make docs` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import atelier

sys.path.insert(0, str(Path(__file__).parent))
import reference

project, author, release = "Atelier", "the authors of Atelier", atelier.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = f"Atelier {release}"
html_copy_source = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have them


def setup(app: Sphinx) -> None:
    """Write the pages that are made of the code, and show what no lexer knows as it is."""
    reference.write(Path(app.srcdir) / "reference")
    app.add_lexer("mermaid", TextLexer)
