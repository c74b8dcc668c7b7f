"""How rows of weights become bytes and come back: a codec is one object in one file, and answers for itself.

`hhtld.codecs.base.Codec` is what every codec answers. Codecs come from a registry, built-in ones as plugins do, and are
loaded when a file or a profile first asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from hhtld.codecs.base import Codec, Profile
from hhtld.codecs.keep import KEEP
from hhtld.codecs.section_kinds import LOOKUP, PALETTE, TRELLIS, add_kinds, remove_kinds
from hhtld.registry import Registry

__all__ = ["KEEP", "codec", "codec_ids", "codecs", "parse_profile", "register", "registry", "unregister"]

registry = Registry(
    "hhtld.codecs",
    {
        KEEP.id: "hhtld.codecs.keep:KeepCodec",
        LOOKUP: "hhtld.codecs.lookup:LookupCodec",
        PALETTE: "hhtld.codecs.palette:PaletteCodec",
        TRELLIS: "hhtld.codecs.trellis:TrellisCodec",
    },
)
_PROFILES = {"lookup": LOOKUP, "f32": PALETTE, "gates": TRELLIS, "parity": TRELLIS, "bits": TRELLIS}  # loads nothing
_registered: dict[str, Codec] = {KEEP.id: KEEP}


def register(new: Codec) -> None:
    """Make a codec known to this process; packages do the same with an entry point of the group `hhtld.codecs`.

    Raises
    ------
    ValueError
        If its id, a profile or a section kind already means something else.
    """
    if new.id in codec_ids():
        raise ValueError(f"codec id {new.id!r} is taken")
    for word in new.profiles:
        if any(word in known.profiles for known in codecs()):
            raise ValueError(f"profile {word!r} is taken")
    add_kinds(new.section_kinds, new.group_numbers, new.id)
    _registered[new.id] = new


def unregister(name: str) -> None:
    """Forget a codec that `register` made known, its section kinds and numbers too."""
    remove_kinds(name)
    _registered.pop(name)


def codec_ids() -> list[str]:
    """Return the ids of all codecs, those of files first."""
    return list(dict.fromkeys([*registry.plugins(), *_registered]))


def codec(name: str) -> Codec:
    """Return the codec of an id that stands in a file, or raise `KeyError`."""
    registered = _registered.get(name)
    if registered is None:
        registered = _loaded(name)
    return registered


@cache
def _loaded(name: str) -> Codec:
    loaded = registry.plugins()[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Codec)):
        raise TypeError(f"plugin {name!r} is not a Codec: {loaded!r}")
    made: Codec = loaded()
    add_kinds(made.section_kinds, made.group_numbers, made.id)
    _registered[name] = made
    return made


def codecs() -> Iterator[Codec]:
    """Yield every codec, loading it."""
    for name in codec_ids():
        yield codec(name)


def parse_profile(text: str, keep: bool = False) -> Profile:
    """Parse a profile; `keep` allows "keep", which only a rule may ask for.

    Raises
    ------
    TypeError, ValueError
        Naming the profiles that there are.
    """
    if not isinstance(text, str):
        raise TypeError(f"a profile is text such as 'gates' or 'bits:2', got {type(text).__name__}")
    word = text.partition(":")[0]
    named = _PROFILES.get(word)
    asked = codec(named) if named else next((each for each in codecs() if word in each.profiles), None)
    profile = None if asked is None or (asked is KEEP and not keep) else asked.profile(text)
    if profile is None:
        words = [each for each_codec in codecs() if each_codec is not KEEP for each in each_codec.profiles]
        known = ", ".join("bits:B" if each == "bits" else each for each in [*words, *(["keep"] if keep else [])])
        raise ValueError(f"no profile {text!r}; available: {known}")
    return profile
