"""Every error sparsezip raises on purpose. Each message says what was asked, what is true and what to do.

SparsezipError
├── UsageError                 the request cannot be met as written: the CLI prints one line and exits with 2
│   ├── UnknownNameError       no method, model, benchmark or key of that name (also a KeyError)
│   ├── SettingError           a setting has a value the method cannot work with (also a ValueError)
│   ├── BudgetError            more tokens asked for than the image has, or none (also a ValueError)
│   ├── ConfigError            a YAML file is malformed, repeats a key or holds an unknown one
│   ├── ImageError             an image is missing, unreadable, truncated, empty or too large
│   ├── DataError              a benchmark's files are missing or a row of them is incomplete
│   ├── UnsupportedModelError  the model's family, or something its tower would have to offer, is not supported
│   ├── UnsupportedCallError   a supported model is called in a way compression cannot serve
│   ├── AlreadyCompressedError compress() or attach() on a model that is compressed already
│   └── RunMismatchError       the output folder holds a different run
└── FailureError               the request was sound but the work failed: exits with 1
"""


class SparsezipError(Exception):
    """Base of every error raised on purpose by this package."""


class UsageError(SparsezipError):
    """The request cannot be met as written."""


class UnknownNameError(UsageError, KeyError):
    """Nothing is registered under that name."""

    __str__ = Exception.__str__  # KeyError would print the repr


class SettingError(UsageError, ValueError):
    """A setting has a value the method cannot work with."""


class BudgetError(UsageError, ValueError):
    """More tokens are asked for than the image has, or none at all."""


class ConfigError(UsageError, ValueError):
    """A configuration is malformed, repeats a key or holds an unknown one."""


class ImageError(UsageError, ValueError):
    """An image is missing, unreadable, truncated, empty or too large."""


class DataError(UsageError, ValueError):
    """A benchmark's files are missing or incomplete."""


class UnsupportedModelError(UsageError, TypeError):
    """The model's family, or what its tower would have to offer, is not supported."""


class UnsupportedCallError(UsageError, ValueError):
    """A supported model is called in a way that compression cannot serve."""


class AlreadyCompressedError(UsageError, RuntimeError):
    """The model is compressed already."""


class RunMismatchError(UsageError, RuntimeError):
    """The output folder holds a different run."""


class FailureError(SparsezipError, RuntimeError):
    """The request was sound, but the work failed."""
