"""A generated few-shot problem of mini-ImageNet's shape, for machines without its images.

A class is a kind of object: an outline (a Fourier series in polar coordinates), a texture in the
object's own frame, and two colours. An image of it varies what a photograph would: place, size,
turn and tilt of the object, light, exact colours, the background and what else is in view. What
tells classes apart thus generalises to new classes, but raw pixels say little.

Only operations that IEEE 754 rounds in one way are used (no transcendental functions, no fused or
reordered sums), and a random stream that is frozen: the images are the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.data.bank import ClassSource, Content, Source, Splits
from kernels.pools import each
from kernels.threads import cores

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

VERSION = 1  # raise it when any image changes
CLASSES = {"train": 64, "val": 16, "test": 20}
IMAGES = 120  # per class
SIDE = 84
_SEED = 20181022
_CHUNK = 30  # images drawn at once: a plane of them stays in the second-level cache
_HARMONICS = 6
_COSINE = np.round(np.cos(np.arange(1024) * (2 * np.pi / 1024)) * 2**14) / 2**14  # a full turn
_AXIS = ((np.arange(SIDE) + 0.5) * (2 / SIDE) - 1).astype(np.float32)
_X, _Y = _AXIS[None, None, :], _AXIS[None, :, None]

NAME = "mini-standin"
NOTICE = """\
################################################################################
#                                                                              #
#   THIS IS NOT mini-ImageNet: no images were found, so a GENERATED STAND-IN   #
#   of the same shape (84x84 RGB, 64/16/20 classes) is used in its place.      #
#   Everything it gives is named mini-standin. Compare none of its figures     #
#   with published ones.                                                       #
#                                                                              #
#   To use the real images, either                                             #
#     1. download them (1.8 GB, for non-commercial research):                  #
#            python -m engine.data fetch mini                                  #
#     2. or name a folder that has them, in any common form:                   #
#            --data FOLDER                                                     #
#   With --strict-data this is an error instead.                               #
#                                                                              #
################################################################################"""


class _Kind(NamedTuple):
    """What the images of a class have in common."""

    outline: np.ndarray  # [2, harmonics]: cosine and sine terms of the radius
    waves: np.ndarray  # [3]: texture frequency along, across and outwards
    mix: np.ndarray  # [4]: weights of the three waves and of the spokes
    spokes: int
    colours: np.ndarray  # [2, 3]


def open_source(seen: Preparation) -> Source:
    def splits() -> Splits:
        first = 0
        for split, classes in CLASSES.items():
            yield split, [_class(first + c, seen) for c in range(classes)]
            first += classes

    kind = f"generated stand-in, version {VERSION}"
    return Source(NAME, [VERSION, IMAGES, _SEED], lambda: Content(kind, splits, tuple(CLASSES)))


def _class(number: int, seen: Preparation) -> ClassSource:
    return ClassSource(f"kind{number:03d}", IMAGES, lambda: seen.fit(draw(number)))


def draw(number: int) -> np.ndarray:
    """uint8 [IMAGES, 84, 84, 3]: the images of one class, of number 0 to 99."""
    kind = _kind(np.random.RandomState([_SEED, number]))
    rngs = [np.random.RandomState([_SEED, number, c]) for c in range(IMAGES // _CHUNK)]
    return np.concatenate(each(lambda rng: _draw_chunk(kind, rng), rngs, cores()))


def _kind(rng: np.random.RandomState) -> _Kind:
    spread = 0.5 / np.arange(1, _HARMONICS + 1) ** 0.5
    outline = _uniform(rng, -1, 1, 2, _HARMONICS) * spread
    outline *= rng.random_sample(_HARMONICS) < 0.5
    outline[:, 0] *= 0.3  # the first harmonic only moves the object
    mix = _uniform(rng, 0, 1.2, 4) * (rng.random_sample(4) < 0.4)
    mix[rng.randint(4)] += 1.2
    waves = _uniform(rng, 0.5, 3.0, 3)
    colours = _uniform(rng, 0, 1, 2, 3)
    return _Kind(outline, waves, mix, rng.randint(2, _HARMONICS + 1), colours)


def _draw_chunk(kind: _Kind, rng: np.random.RandomState) -> np.ndarray:
    """uint8 [_CHUNK, 84, 84, 3]."""
    image = _background(rng)
    for _ in range(2):  # other things in view
        along, across = _frame(rng, reach=1.0, sizes=(0.1, 0.35))
        inside = _edge(1 - _radius(along, across))
        _cover(image, _plane(_uniform(rng, 0, 1, 3, _CHUNK)), inside)
    inside, texture = _object(kind, *_frame(rng, reach=0.28, sizes=(0.45, 0.75)))
    colours = kind.colours.T[:, :, None] + _uniform(rng, -0.2, 0.2, 3, 2, _CHUNK)
    first, second = _plane(colours[:, 0]), _plane(colours[:, 1])
    _cover(image, _mix(first, second, texture), inside)
    tilt_x, tilt_y = _plane(_uniform(rng, -0.3, 0.3, 2, _CHUNK))
    light = _plane(_uniform(rng, 0.7, 1.2, _CHUNK)) * (1 + tilt_x * _X + tilt_y * _Y)
    noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    image *= light
    image *= np.float32(255)
    noise = noise * np.float32(0.15)
    noise -= np.float32(19)
    image += noise
    return np.stack(np.clip(image, 0, 255, out=image).astype(np.uint8), -1)


def _background(rng: np.random.RandomState) -> np.ndarray:
    """[3, n, 84, 84]: two colours mixed by three plane waves."""
    waves = np.zeros((_CHUNK, SIDE, SIDE), np.float32)
    for _ in range(3):
        along_x, along_y = _plane(_uniform(rng, -1.2, 1.2, 2, _CHUNK))
        turns = along_x * _X + along_y * _Y
        turns += _plane(_uniform(rng, 0, 1, _CHUNK))
        waves += _wave(turns)
    waves *= np.float32(0.3)
    first, second = _plane(_uniform(rng, 0.15, 0.85, 2, 3, _CHUNK))
    return _mix(first, second, _edge(waves, 0.5))


def _frame(
    rng: np.random.RandomState,
    reach: float,
    sizes: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [n, 84, 84] along and across an object put, turned and sized at random."""
    centre_x, centre_y = _plane(_uniform(rng, -reach, reach, 2, _CHUNK))
    turn = rng.randint(-96, 97, _CHUNK)  # 34 degrees either way
    size, aspect = _uniform(rng, *sizes, _CHUNK), _uniform(rng, 0.8, 1.25, _CHUNK)
    cosine, sine = _COSINE[turn], _COSINE[turn - 256]
    x, y = _X - centre_x, _Y - centre_y
    along = _plane(cosine / size) * x + _plane(sine / size) * y
    across = _plane(cosine / size * aspect) * y - _plane(sine / size * aspect) * x
    return along, across


def _object(
    kind: _Kind,
    along: np.ndarray,
    across: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Cover and texture in [0, 1], [n, 84, 84], of an object in its own frame."""
    radius = _radius(along, across)
    radius += np.float32(1e-3)
    outline, spokes = _outline(kind, along / radius, across / radius)
    texture = np.zeros_like(radius)
    waves, mix = kind.waves.astype(np.float32), kind.mix.astype(np.float32)
    for frequency, weight, place in zip(waves, mix, (along, across, radius), strict=False):
        if weight:
            texture += weight * _wave(frequency * place)
    if mix[3]:
        texture += mix[3] * spokes
    return _edge(outline - radius, 12), _edge(texture, 1)


def _outline(
    kind: _Kind, cosine: np.ndarray, sine: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """The object's radius in each direction, and the spokes' wave if its texture has them."""
    outline, spokes = np.ones_like(cosine), None
    terms, spoked = kind.outline.astype(np.float32), kind.spokes if kind.mix[3] else 0
    last = max([spoked, *(k + 1 for k in range(_HARMONICS) if terms[:, k].any())])
    c, s = cosine, sine  # of k + 1 times the angle
    for k in range(last):
        if k:
            c, s = c * cosine - s * sine, s * cosine + c * sine
        a, b = terms[:, k]
        if a or b:
            outline += a * c + b * s
        if k + 1 == spoked:
            spokes = c
    return outline, spokes


def _radius(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    squares = along * along
    squares += across * across
    return np.sqrt(squares, out=squares)


def _wave(turns: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between -1 and 1."""
    nearest = np.floor(turns + np.float32(0.5))
    wave = np.abs(np.subtract(turns, nearest, out=nearest), out=nearest)
    wave *= np.float32(4)
    wave -= np.float32(1)
    return wave


def _edge(x: np.ndarray, sharpness: float = 12) -> np.ndarray:
    """Between 0 and 1; in place."""
    x *= np.float32(sharpness)
    x += np.float32(0.5)
    return np.clip(x, 0, 1, out=x)


def _mix(first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    mixed = (second - first) * part
    mixed += first
    return mixed


def _cover(image: np.ndarray, paint: np.ndarray, cover: np.ndarray) -> None:
    """Paints the image, in place, as far as it is covered."""
    change = paint - image
    change *= cover
    image += change


def _plane(values: np.ndarray) -> np.ndarray:
    """float32 [..., n, 1, 1]"""
    return values.astype(np.float32)[..., None, None]


def _uniform(rng: np.random.RandomState, low: float, high: float, *shape: int) -> np.ndarray:
    return low + (high - low) * rng.random_sample(shape)
