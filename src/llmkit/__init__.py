"""llmkit: pretrain, fine-tune, evaluate and sample Hugging Face language models."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

_AUTO = "transformers.models.auto.configuration_auto"
_OURS = "llmkit.models.transformer_config"


class _JoinAutoClasses:
    """Registers our Transformer with transformers' Auto classes as soon as those are imported.

    `import llmkit` is thus all that `from_pretrained` needs, and loads nothing by itself.
    """

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Stands in for the one module that all Auto classes begin with, once."""
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_join(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(_OURS)

            spec.loader.exec_module = execute_and_join  # type: ignore[method-assign]
        return spec


if _AUTO in sys.modules:
    importlib.import_module(_OURS)
else:
    sys.meta_path.insert(0, _JoinAutoClasses())
