"""What can go wrong in the engine.

EngineError
├── ConfigError      an option has a value that cannot be honoured
├── ModelRefused     the model cannot be served; the text names the layer or feature
├── RequestRefused   this one request can never run; has a `code`
└── EngineDead       the loop has ended by a fatal error; the process must exit
"""


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class ConfigError(EngineError):
    """An option has a value that cannot be honoured."""


class ModelRefused(EngineError):
    """The model cannot be served; the message names the layer or feature."""


class RequestRefused(EngineError):
    """One request can never run. `code` is the row's error_code (`context_length`, `invalid_request`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineDead(EngineError):
    """The engine's loop has ended by a fatal error; nothing can be served any more."""
