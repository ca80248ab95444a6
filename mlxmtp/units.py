"""Numbers of bytes in words."""


def size(count: int) -> str:
    """Return a number of bytes in decimal units (kB, MB, GB): of files and of memory, so that they can be compared."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
