"""Libraries that are installed apart, by an extra of this package such as ``ibsgl[captum]``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def not_installed(library: str, extra: str) -> ValueError:
    """The error for a ``library`` that the extra ``extra`` of this package installs."""
    return ValueError(f"{library} is not installed; install ibsgl[{extra}]")


def installed_version(library: str, extra: str) -> str:
    """The version of ``library``; see :func:`not_installed`."""
    try:
        return version(library)
    except PackageNotFoundError:
        raise not_installed(library, extra) from None
