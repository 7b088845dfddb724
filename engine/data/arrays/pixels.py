"""Images out of pickles and npz archives: what forms they may have, and how they become uint8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.data.images import BEYOND, all_of, are_fractions, are_levels, of_fractions
from engine.errors import UserError, listed

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")  # how PNG, JPEG and WebP begin
_AGAIN = "get the file again"

Note = Callable[[str], None]


class Images:
    """``values`` is an array [N, H, W, C] to be multiplied by ``scale``, or N encoded images."""

    def __init__(self, values: np.ndarray | list, where: str, high: float = 255):
        self.values, self.where, self.high = values, where, high
        self.scale = 1

    def __len__(self) -> int:
        return len(self.values)

    @property
    def form(self) -> str | None:
        """In words; None of encoded images, which may differ."""
        if not isinstance(self.values, np.ndarray):
            return None
        return f"{'x'.join(map(str, self.values.shape[1:]))} up to {255 // self.scale}"

    def reverse_colours(self) -> bool:
        """Of an array of colours, which is then the other way round; whether it is one."""
        if not isinstance(self.values, np.ndarray) or self.values.shape[-1] != 3:
            return False
        self.values = self.values[..., ::-1]
        return True

    def take(self, rows: np.ndarray, seen: Preparation) -> np.ndarray:
        """uint8 [len(rows), size, size, channels]."""
        if not isinstance(self.values, np.ndarray):
            return all_of(lambda row: self._decoded(row, seen), rows.tolist())
        images = self.values[rows]
        if self.scale != 1:
            images = of_fractions(images)
        elif images.dtype != np.uint8:
            images = np.rint(images).astype(np.uint8)
        return seen.fit(images)

    def _decoded(self, row: int, seen: Preparation) -> np.ndarray:
        return seen.decode(bytes(self.values[row]), f"{self.where}, image {row}")


def is_encoded(value: Any) -> bool:
    """Whether these bytes are a PNG, JPEG or WebP file, going by how they begin."""
    if isinstance(value, np.ndarray):
        flat = value.dtype == np.uint8 and max(value.shape, default=0) == value.size
        return flat and value[:12].tobytes().startswith(_MAGIC)
    return isinstance(value, bytes) and value.startswith(_MAGIC)


def images_of(value: Any, where: str, note: Note) -> Images:
    """Of an array of any number type and order of axes, a list of such, or of encoded images.

    Raises UserError when it is nothing of that kind, or its numbers are no pixels.
    """
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray | bytes) for v in value):
        if any(map(is_encoded, value)):
            return _encoded(value, where)
        forms = Counter(
            f"{v.dtype} {list(v.shape)}" if isinstance(v, np.ndarray) else "bytes" for v in value
        )
        if len(forms) > 1:
            found = listed(f"{count} of {form}" for form, count in forms.most_common())
            raise UserError(f"{where}: the images differ in shape or type: {found}; make them one")
        if isinstance(value[0], np.ndarray):
            value = np.stack(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise UserError(f"{where}: the images are no array of numbers; {_AGAIN}")
    return _in_range(_channels_last(value, where, note), where, note)


def _encoded(value: list, where: str) -> Images:
    if bad := [str(row) for row, v in enumerate(value) if not is_encoded(v)]:
        raise UserError(
            f"{where}: {len(bad)} of {len(value)} images are no PNG, JPEG or WebP files, rows "
            f"{listed(bad)}; {_AGAIN}"
        )
    return Images(value, where)


def _channels_last(array: np.ndarray, where: str, note: Note) -> np.ndarray:
    """[N, H, W, C] with 1 or 3 channels."""
    shape = array.shape
    if 0 not in shape and array.ndim == 3 and shape[2] > 4:
        return array[..., None]
    if 0 not in shape and array.ndim == 4 and shape[3] in (1, 3):
        return array
    if 0 not in shape and array.ndim == 4 and shape[1] in (1, 3):
        note("images are stored as [N, C, H, W]: turned to [N, H, W, C]")
        return array.transpose(0, 2, 3, 1)
    raise UserError(
        f"{where}: the images are {array.dtype} {list(shape)}, but must be [N, H, W, C] or "
        f"[N, C, H, W] with 1 or 3 channels, or [N, H, W], and N at least 1; {_AGAIN}"
    )


def _in_range(array: np.ndarray, where: str, note: Note) -> Images:
    """What was normalised by a mean and a deviation cannot be undone, so it is refused, and so are
    fractions of which nobody can say whether they end at 1 or at 255."""
    with np.errstate(invalid="ignore"):
        low, high = float(array.min()), float(array.max())
    floats = are_fractions(low, high) or are_levels(low, high)
    if not (floats if array.dtype.kind == "f" else 0 <= low <= high <= 255):
        raise UserError(
            f"{where}: the images are {array.dtype} from {low:g} to {high:g}, but must be from 0 "
            "to 255 or from 0 to 1; save them as they were before they were normalised"
        )
    if array.dtype != np.uint8:
        note(f"images are {array.dtype}: rounded to uint8")
    return Images(array, where, high)


def set_scale(images: Iterable[Images], note: Note) -> None:
    """Images of which none goes beyond 1 were divided by 255, or are of black and white."""
    images = list(images)
    if 0 < (high := max(i.high for i in images)) <= 1 + BEYOND:
        over = f", and cut off there from {high:.7g}" if high > 1 else ""
        note(f"images are from 0 to 1: multiplied by 255{over}")
        for i in images:
            i.scale = 255
