"""Formulas of the pages, drawn when the site is built: nothing is fetched, and no script runs where they are read."""

import html
import re
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

FONT = FontProperties(math_fontfamily="stix")
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
EM = 100


def on_page_content(content: str, **kwargs: Any) -> str:
    """Put drawings in place of the formulas that pymdownx.arithmatex has marked; MkDocs calls this for every page."""
    content = re.sub(
        r'(<div class="arithmatex">)\s*\\\[(.*?)\\\](?=\s*</div>)', _drawing(1.25), content, flags=re.DOTALL
    )
    return re.sub(r'(<span class="arithmatex">)\\\((.*?)\\\)(?=</span>)', _drawing(1.12), content, flags=re.DOTALL)


def svg(formula: str, scale: float = 1.0) -> str:
    """Return a formula in matplotlib's TeX as an inline drawing that stands on the line of the text.

    Raises:
        ValueError: If the formula cannot be read.
    """
    path = TextPath((0, 0), f"${formula}$", size=EM, prop=FONT)
    box, drawn = path.get_extents(), []
    for points, code in path.iter_segments():
        shown = () if code == Path.CLOSEPOLY else zip(points[::2], points[1::2], strict=True)
        drawn.append(COMMANDS[code] + " ".join(f"{x:.0f} {-y:.0f}" for x, y in shown))
    size = f"width:{box.width / EM * scale:.3f}em;height:{box.height / EM * scale:.3f}em"
    return (
        f'<svg class="formula" role="img" aria-label="{html.escape(formula)}" style="{size};'
        f'vertical-align:{box.y0 / EM * scale:.3f}em" '
        f'viewBox="{box.x0:.0f} {-box.y1:.0f} {box.width:.0f} {box.height:.0f}"><path d="{"".join(drawn)}"/></svg>'
    )


def _drawing(scale: float) -> Any:
    return lambda match: match[1] + svg(" ".join(html.unescape(match[2]).split()), scale)
