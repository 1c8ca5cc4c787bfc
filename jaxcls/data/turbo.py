"""Partial decoding of JPEGs by libjpeg-turbo 3 (its TurboJPEG interface), where the machine has it.

Looked for in the package `turbojpeg` (`pip install 'jaxcls[turbo]'`), then among the system's libraries. Never required.
"""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np

# Numbers of turbojpeg.h.
DECOMPRESS, RGB, WARNING = 1, 0, 0
SUBSAMPLING, WIDTH, HEIGHT = 4, 5, 6  # parameters
NEIGHBOURS = 2  # pixels on either side
WHOLE_BLOCKS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32}  # subsampling -> width in pixels of what is coded together
SYSTEM_NAMES = ("libturbojpeg.so.0", "libturbojpeg.dylib", "turbojpeg.dll")


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Scale(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("numerator", "denominator")]


_SIGNATURES = {
    "tj3Init": (ctypes.c_void_p, [ctypes.c_int]),
    "tj3Destroy": (None, [ctypes.c_void_p]),
    "tj3GetErrorStr": (ctypes.c_char_p, [ctypes.c_void_p]),
    "tj3GetErrorCode": (ctypes.c_int, [ctypes.c_void_p]),
    "tj3DecompressHeader": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "tj3Get": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "tj3SetScalingFactor": (ctypes.c_int, [ctypes.c_void_p, _Scale]),
    "tj3SetCroppingRegion": (ctypes.c_int, [ctypes.c_void_p, _Region]),
    "tj3Decompress8": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    ),
}


def _find() -> ctypes.CDLL | None:
    package = importlib.util.find_spec("turbojpeg")
    folder = Path(package.origin).parent if package and package.origin else None
    bundled = sorted(folder.glob("turbojpeg.libs/*turbojpeg*")) if folder else []
    for place in (*map(str, bundled), *SYSTEM_NAMES):
        try:
            library = ctypes.CDLL(place)
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):  # not there, or older than 3
            continue
        return library
    return None


LIBRARY = _find()


def decode(encoded: bytes, box: tuple[int, int, int, int], shrink: int) -> np.ndarray:
    """A part of a JPEG, RGB, uint8 `[bottom - top, right - left, 3]`.

    Args:
      encoded: a JPEG of 8 bits, grey or of three channels.
      box: left, top, right, bottom, in pixels of the picture at a fraction 1 / `shrink` of its size.
      shrink: 1, 2, 4 or 8.

    Raises:
      ValueError: the file is broken.
    """
    handle = LIBRARY.tj3Init(DECOMPRESS)  # never used again: after a broken file it refuses good ones; costs 2 microseconds
    try:
        return _decode(handle, encoded, box, shrink)
    finally:
        LIBRARY.tj3Destroy(handle)


def _decode(handle: int, encoded: bytes, box: tuple[int, int, int, int], shrink: int) -> np.ndarray:
    _check(handle, LIBRARY.tj3DecompressHeader(handle, encoded, len(encoded)))
    _check(handle, LIBRARY.tj3SetScalingFactor(handle, _Scale(1, shrink)))
    left, top, right, bottom = box
    height, width = (-(-LIBRARY.tj3Get(handle, which) // shrink) for which in (HEIGHT, WIDTH))
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):  # the library would write past the array
        raise ValueError(f"its header states {width} by {height} pixels, not as many as before")
    # A region begins between blocks. Colour is interpolated from the pixels beside it, which must be in the region too.
    step = WHOLE_BLOCKS.get(LIBRARY.tj3Get(handle, SUBSAMPLING), 32) // shrink
    start = max(left - NEIGHBOURS, 0) // step * step
    stop = min(right + NEIGHBOURS, width)
    _check(handle, LIBRARY.tj3SetCroppingRegion(handle, _Region(start, top, stop - start, bottom - top)))
    pixels = np.empty((bottom - top, stop - start, 3), np.uint8)
    _check(handle, LIBRARY.tj3Decompress8(handle, encoded, len(encoded), pixels.ctypes.data, 0, RGB))
    return pixels[:, left - start : right - start]


def _check(handle: int, status: int) -> None:
    if status and LIBRARY.tj3GetErrorCode(handle) != WARNING:
        raise ValueError(LIBRARY.tj3GetErrorStr(handle).decode(errors="replace"))
