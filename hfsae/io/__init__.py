"""What all other rooms need: files, hashes, errors, the lock, the Hub's client.

`errors` has the kinds of refusals, a sentence each, and `bounds` refuses settings beyond any known
use. `file_names` names what hfsae writes; `files` reads it with a sentence for damage, writes it
whole, and locks a folder; `checksums` tells whether it is unchanged, and of its weights.
`processor` knows the device, `hub_client` retries calls to the Hub, and `importing` waits for
another library's import. What is shown or sent is in the words of `units` and the tables of
`markdown`, without keys (`secrets`) and paths of this machine (`local_paths`). Public are the kinds
of refusals, and what those need who read or change a run's records themselves: whether a record is
of its weights and unchanged, its seal, and what of it may be published.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
