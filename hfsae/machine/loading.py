"""One model is loaded at a time.

While transformers loads one, it replaces `PreTrainedModel.tie_weights` for the whole process, and
puts back what it found. Two threads that load at once (sessions of the app, pushes that verify) may
put back each other's replacement: models made later are then not tied, and a head that should share
the embeddings' weights has none.
"""

import threading

one_at_a_time = threading.RLock()
