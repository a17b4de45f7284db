"""Other libraries' modules: call a function once one is imported, without importing it."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import local
from types import ModuleType


def after_importing(name: str, call: Callable[[], object], *, own: str) -> None:
    """Call a function as soon as a module is there: at once, or when the import that brings it
    ends.

    That import is the outermost one of the module's package or of `own`, so that the function can
    import from both: modules of a package often import each other.

    Args:
        name: the module's dotted name, below its package: "transformers.models.auto".
        own: the package whose function it is.
    """
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Watch(name, call, own))


class _Watch(MetaPathFinder):
    """Finds modules of two packages as the other finders do, and counts imports under way."""

    def __init__(self, name: str, call: Callable[[], object], own: str) -> None:
        self.name, self.call = name, call
        self.packages = f"{name.partition('.')[0]}.", f"{own}."
        self.open = local()  # a count for each thread

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self.packages):
            return None
        at = sys.meta_path.index(self) if self in sys.meta_path else -1
        others = sys.meta_path[at + 1 :]  # one that is before this one has called it
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        loader = spec.loader if spec is not None else None
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.open.count = getattr(self.open, "count", 0) + 1
            try:
                execute(module)
            finally:
                self.open.count -= 1
            if not self.open.count and self.name in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                self.call()

        loader.exec_module = exec_module
        return spec
