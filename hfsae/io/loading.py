"""A lock: one model is loaded at a time.

While transformers loads a model, it replaces `PreTrainedModel.tie_weights` for the whole process,
then restores the method from before. Two threads that load at once (sessions of the app, pushes
that verify) may restore each other's replacement: later models are then not tied, and a head that
should share the embeddings' weights has no weights.
"""

import threading

one_at_a_time = threading.RLock()
