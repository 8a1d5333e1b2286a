"""Decoding image files, with errors that name the file."""

from __future__ import annotations

import io
import os

from PIL import Image, UnidentifiedImageError


def open_image(content: bytes, path: str | os.PathLike[str], decode: bool = True) -> Image.Image:
    """The image in ``content``.

    Args:
        content: the bytes of an image file.
        path: the file, for the message.
        decode: read all pixels, so that a truncated file is found. Otherwise only the size is read.

    Raises:
        ValueError: it is no image, is truncated, or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if decode:
            image.load()
            # It is parsed, and kept, here.
            image.getexif()
    except UnidentifiedImageError:
        # Pillow's message has the address of an object.
        raise ValueError(f"{path}: the image cannot be read (its format is unknown); replace the file") from None
    except MemoryError:
        raise
    except Exception as error:
        # A damaged file can make a decoder raise anything.
        raise ValueError(f"{path}: the image cannot be read ({error}); replace the file") from error
    return image
