"""HTML for the pages, from parts.html, and the component that shows it.

Gradio's own templates evaluate what is put into them as JavaScript template literals: `${...}` in a
prompt would run. So the markup is made here, by Jinja2 with autoescape, and reaches the browser as
a finished string; what a person clicks comes back as the `data-do` and `data-at` of the element,
and the click's number.
"""

import base64
import math
import re
from collections.abc import Callable
from functools import cache
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr
import nh3
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt

from ..features.labels import mark_of

# Of Markdown that others wrote. Its parser is quadratic in brackets, and in rows times columns.
_MOST_CHARACTERS, _MOST_MARKS, _MOST_COLUMNS = 40_000, 1_000, 32  # marks: lines, brackets
_TAGS = "h1 h2 h3 h4 h5 h6 p br hr a em strong b i del sub sup code pre blockquote ul ol li"
_TAGS += " table thead tbody tr th td details summary"
_CUT = "<p><em>The rest is too long to be shown here.</em></p>\n"
_HERE = Path(__file__).parent
_SINGLE = str.maketrans('\u201c\u201d\u201e"', "\u2018\u2019\u201a'")

# One listener on the root: what is inside is replaced at every update.
_JS = """
const send = (what, node, to) => trigger(
    what === 'ablate' ? what : 'select',
    {do: what, at: node.dataset.at ?? '', to: to, click: ++hfsae.clicks},
);
element.addEventListener('click', (event) => {
    const node = event.target.closest('[data-do]');
    if (node && !node.disabled) {
        hfsae.asked = node.dataset.do;
        send(node.dataset.do, node, node.dataset.to ?? null);
    }
    if (event.target.closest('[data-local=theme]')) hfsae.theme();
    if (event.target.closest('[data-local=tour]')) hfsae.tour();
    if (event.target.closest('[data-local=copy]')) hfsae.copy(event.target);
    if (event.target.closest('[data-local=copy-code]')) hfsae.copyCode(event.target);
});
new MutationObserver(() => hfsae.drawn(element)).observe(element, {childList: true, subtree: true});
hfsae.drawn(element);
element.addEventListener('input', (event) => {
    const node = event.target, chip = node.closest('[data-chip]');
    if (chip && node.type === 'range') chip.querySelector('input[type=number]').value = node.value;
});
element.addEventListener('change', (event) => {
    const node = event.target, typed = node.value, {rangeOverflow, rangeUnderflow} = node.validity;
    if (!node.dataset.change) return;
    // what will be refused gives way to what holds
    if (rangeOverflow || rangeUnderflow || typed === '') node.value = node.defaultValue;
    hfsae.settle(() => send(node.dataset.change, node, typed));
});
"""


def panel(value: str = "", *, elem_id: str | None = None) -> gr.HTML:
    """A piece of a page; `.select` (or `.ablate`) fires with the EventData do, at, to."""
    return gr.HTML(
        value,
        html_template="${value}",
        js_on_load=_JS,
        elem_id=elem_id,
        apply_default_css=False,
    )


def dial(
    low: float, high: float, *, value: int | float, step: int | float, label: str
) -> gr.Slider:
    """A slider that allows any number: the actions refuse one that is out of range."""
    slider = gr.Slider(low, high, value, step=step, label=label)
    slider.preprocess = lambda payload: payload
    return slider


def html(macro: str, *arguments: object) -> str:
    """One macro of parts.html, filled in; arguments are text, never markup."""
    return str(getattr(_environment().get_template("parts.html").module, macro)(*arguments)).strip()


def markdown(text: str) -> str:
    """Markdown from anybody as HTML that loads nothing, sends nothing, and stays in its place.

    A text longer than any card is cut, with a note.
    """
    end = _MOST_CHARACTERS
    for mark in ("\n", "["):
        if match := next(islice(re.finditer(re.escape(mark), text), _MOST_MARKS, None), None):
            end = min(end, match.start())
    shown = text[:end]
    parser = MarkdownIt("commonmark").enable("table")
    parser.add_render_rule("image", lambda self, tokens, i, *_: escape(tokens[i].content))
    if any(line.count("|") > _MOST_COLUMNS for line in shown.splitlines()):
        parser.disable("table")

    def without_files(tag: str, attribute: str, value: str) -> str | None:
        """None for a link to a file beside the card, which the app does not serve."""
        is_file = attribute == "href" and not re.match(r"[a-z]+:|#", value)
        return None if is_file else value

    cleaned = nh3.clean(
        parser.render(shown),
        tags=set(_TAGS.split()),
        attributes={"a": {"href", "title"}, "td": {"style"}, "th": {"style"}},
        filter_style_properties={"text-align"},
        url_schemes={"http", "https", "mailto"},
        attribute_filter=without_files,
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return cleaned if len(shown) == len(text) else cleaned + _CUT


def data_link(content: bytes, kind: str) -> str:
    """Content as a link that holds it; kind: its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def document(name: str, **values: object) -> str:
    """A whole web page from a template beside this file; values are text, never markup."""
    return str(_environment().get_template(name).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, percent, times, show_control_chars, quoted, cited, in_words)
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= {"mark": mark_of, "repr": repr}
    return environment


def number(value: int | float) -> str:
    """A number with about three digits, as people write it."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 0.001:
        return f"{value:.3g}"
    return f"{value:.1e}"


def bars_of(
    bins: list[dict[str, Any]], what: str, name: Callable[[float], str]
) -> tuple[list[dict[str, Any]], int]:
    """A histogram's bars for `chart`, and the largest count; bins: {low, high, count} of each."""
    most = max((b["count"] for b in bins), default=1) or 1
    bars = [
        {
            "share": b["count"] / most,
            "title": f"{name(b['low'])} to {name(b['high'])}: {b['count']:,} {what}",
        }
        for b in bins
    ]
    return bars, most


def percent(share: float) -> str:
    """A share as people write it: two digits where it is small."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def times(nats: float) -> str:
    """A difference of log-probabilities as a factor, in two digits."""
    factor = math.exp(min(nats, 20))
    return f"{factor:.1f}" if factor < 10 else f"{float(f'{factor:.2g}'):,.0f}"


def in_words(site: str) -> str:
    """A site in words, where it is a block's output; else its name."""
    block = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", site)
    return f"the output of block {block[1]}, counted from 0" if block else site


def show_control_chars(text: str) -> str:
    """Line ends as signs; other characters that would act on the page's text are spelt out."""
    text = text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(text: str) -> str:
    """`show_control_chars`, for a token that stands alone: a space is a sign, too."""
    shown = show_control_chars(text)
    return shown if text.strip(" ") else shown.replace(" ", "␣")


def spaced(token: str) -> str:
    """`show_control_chars`, with a sign for each space at the beginning: it tells tokens apart."""
    word = token.lstrip(" ")
    return "␣" * (len(token) - len(word)) + show_control_chars(word)


def cited(name: str) -> str:
    """A name in quotation marks, for a sentence; marks within it become single ones."""
    return f"“{name.translate(_SINGLE)}”"
