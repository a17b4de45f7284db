"""`hfsae demo`: inspect a model through an SAE, and steer a language model, in a browser.

    subject                       what is shown: an SAE, its model, the files beside them
    opening                       how it is read from a folder or the Hub
    units                         what it reads, in words: tokens, rows or patches
    inspect_actions | why
    | steer_actions | latent_map
    | health_actions | beside
    | picture_actions
    | label_actions
    | diff_actions
    | cooccurrence                what can be done: functions, plain values in, plain values out
    reading, seeing, rows,
    validate                      what they share: text to tokens, pictures to patches, latents to
                                  rows, checked input
    automatic, label_home         names that `hfsae explain` gave, with their tests; people's labels
    actions                       the table of endpoints of the API, and of tools for agents
    documented                    docstrings of actions as words and schemas
    tools                         what agents are told, and their answers as JSON
    settings                      how to steer, and how to draw tokens
    salience                      which latents of a text come first
    presets                       latents and words to begin with
    address                       what is shown, as a link
    picture, picture.html         a steered text to share
    crops                         pictures of examples, with a latent's activations over them
    export                        a latent to take away
    parts, parts.html, style.css  pieces of pages: all markup is made here, and escapes text
    pages/                        widgets, a page each
    bodies                        what a request may carry
    sessions                      what is remembered of callers, and of how many
    app                           the pages together

Needs the `demo` extra.
"""

from .app import build as build
from .app import launch as launch
from .app import looks as looks
from .opening import open_subject as open_subject
from .subject import Choice as Choice
from .subject import Subject as Subject
