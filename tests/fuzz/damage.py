"""Bytes that a person, a disk or a network has damaged, and readers called on them."""

import resource

import pytest
from hypothesis import strategies as st

# Megabytes that reading one small file may need at most.
MEMORY = 1000


@st.composite
def damaged(draw, content):
    """``content``, bytes, with up to eight flips, cuts, insertions and repetitions."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "remove", "insert", "repeat"]))
        length = draw(st.integers(1, 64))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            content[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del content[place:]
        elif kind == "remove":
            del content[place : place + length]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=length))
        else:
            content[place:place] = content[place : place + length]
    return bytes(content)


def only_our_errors(read, path, *, name=None, lines=1):
    """What ``read`` returns; ``None`` after an error of a few lines that names the file. All else is a failure.

    Args:
        name: what the message must contain; by default ``path``.
        lines: the most lines of the message.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return read()
    except UnicodeError:
        raise
    except ValueError as error:
        message = str(error)
    except OSError as error:
        # The commands say what the system said, with the file's name.
        if not error.filename:
            raise
        message = f"{error.filename}: {error.strerror}"
    finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if grown > MEMORY:
            pytest.fail(f"reading {path} took {grown:.0f} MB")
    assert (str(path) if name is None else name) in message, message
    assert len(message.splitlines()) <= lines, message
    return None
