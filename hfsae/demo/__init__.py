"""`hfsae demo`: inspect a model through an SAE, and steer a language model, in a browser.

A `Subject` (`subject`; `opening` reads it) is an SAE with its model and the files beside it. What
can be done with it are plain functions, of plain values to plain values: `inspect_actions`,
`picture_latents`, `steer_actions`, `why`, `health_actions`, `table_actions`; they
share `validate` (input), `rows` (latents as rows of a table, in order), `word_search`, `presets`.
`actions` has them in one table, and makes an API and tools for agents of it. A page (`pages/`) has
widgets and shows an `address`, which is its link; markup is made in `parts`, code in `snippet`,
pictures to share in `share`; `app` puts the pages together, and guards them.

To follow a click on Generate: `pages/steer` (`SteerPage.wire`; `Visit.ask` of `pages/page` keeps
what was asked, then `generate`), `steer_actions` (`check`, `write`), and in hfsae `steering.pair`,
`steering.intervention` and `lm.splicing`. Back: the macro `pair` of `parts.html`, and `page.js`. A
setting of that page is a field of `address.Steer`, with a name in `SETTINGS`, a widget of
`pages/steer`, an argument of `steer_actions.steer`, and a name in `content` of `page.js`.

Needs the `demo` extra.
"""

from .app import build as build
from .app import launch as launch
from .app import looks as looks
from .opening import open_subject as open_subject
from .rows import by_salience as by_salience
from .rows import token_frequencies as token_frequencies
from .subject import Choice as Choice
from .subject import Subject as Subject
from .subject import default_source as default_source
