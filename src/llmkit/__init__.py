"""llmkit: pretrain, fine-tune, evaluate and sample Hugging Face language models."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in `typing`, which this does not have to import
if TYPE_CHECKING:
    from llmkit import errors
    from llmkit.api.calls import evaluate, finetune, generate, predict, pretrain

__all__ = ["__version__", "errors", "evaluate", "finetune", "generate", "predict", "pretrain"]


def __getattr__(name: str) -> object:
    """Loads the functions when they are first used, so that `import llmkit` is instant."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module("llmkit.errors")
    return getattr(import_module("llmkit.api.calls"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
