"""Errors that a user can correct. The message is one line, and the command line prints it without a traceback."""


class ConfigError(ValueError):
    """The config cannot be used. The message names the key."""


class DownloadError(ValueError):
    """The data set cannot be downloaded. The message names the file, the problem and what to do."""


class TrainingError(RuntimeError):
    """Training cannot continue. The message names the epoch and the setting to change."""
